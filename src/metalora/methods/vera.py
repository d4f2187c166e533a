"""VeRA (arXiv:2310.11454): two frozen random matrices for the whole model, and two vectors for each target.

The matrices are made from the seed and never saved. Those of PEFT have the largest width and are sliced, which is
widths="max_slice" here.
"""

from metalora.methods.method import Method
from metalora.methods.records import AnyRank

VERA = Method(
    name="vera",
    title="VeRA",
    source="arXiv:2310.11454",
    formula="ΔW = A diag(d) B diag(b)",
    factors={"A": "kh kw in r", "d": "r", "B": "r out", "b": "out"},
    init={"A": "kaiming:0", "d": "ones:0.1", "B": "kaiming:0", "b": "zeros"},  # d = 0.1 and b = 0 as in the paper
    count="O + R",
    replicated_over={"A": "", "d": "target", "B": "", "b": "target"},
    frozen=("A", "B"),
    scale="alpha",
    mechanisms=(AnyRank(),),
    notes="The paper has no scale.",
)
