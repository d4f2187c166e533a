"""LoRTA (arXiv:2410.04060): a CP tensor over inputs, head size, heads, layers and projections.

The paper joins the blocks of the heads on the output axis (lorta). Its code joins them on the input axis, which is
right for the projection behind the attention (lorta-in). lorta-auto has them on the inputs there, and on the outputs
otherwise.
"""

from dataclasses import replace

from metalora.methods.method import Method
from metalora.methods.records import Transposed
from metalora.tensornet.formats import cp

MIDDLE = {"C_H": "head", "C_L": "layer", "C_P": "proj"}
# by_rank:0 is U(-b, b) with b = sqrt(6 / rank): the fan-in of a CP factor is its rank
INIT = {"A": "by_rank", "C_H": "by_rank:0", "C_L": "by_rank:0", "C_P": "by_rank:0", "B": "zeros"}

LORTA = Method(
    name="lorta",
    title="LoRTA (heads on the outputs)",
    source="arXiv:2410.04060",
    formula="ΔW_{l,p} = [A diag(C_H[h] ⊙ C_L[l] ⊙ C_P[p]) B]_h",
    factors=cp({"A": "kh kw in", **MIDDLE, "B": "hdim"}),
    init=INIT,
    count="R*(K*I + J + H + L + M)",
    folds={"out": "head hdim"},
    replicated_over="",
)

LORTA_IN = Method(
    name="lorta-in",
    title="LoRTA (heads on the inputs)",
    source="arXiv:2410.04060, its code",
    formula="ΔW_{l,p} = [A diag(C_H[h] ⊙ C_L[l] ⊙ C_P[p]) B]_h^T",
    factors=cp({"A": "out", **MIDDLE, "B": "kh kw hdim"}),
    init=INIT,
    count="R*(O + K*J + I//J + L + M)",  # I//J heads: they are a fold of the inputs
    folds={"in": "head hdim"},
    replicated_over="",
)

LORTA_AUTO = replace(
    LORTA,
    name="lorta-auto",
    title="LoRTA (heads on their own side)",
    formula="ΔW_{l,p} = [A diag(C_H[h] ⊙ C_L[l] ⊙ C_P[p]) B]_h, of the transpose behind the attention",
    mechanisms=(Transposed("heads"),),
    notes="The name of the projection decides which side the heads are on (o_proj, attention.output.dense, ...).",
)
