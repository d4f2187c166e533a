"""TensorPEFT (HF Angshul/TensorPEFT): CP of all weights of one shape over layers, roles, inputs and outputs.

Its atoms start as components of the gradient on one batch, by
`metalora.fitting.warm_start.atoms_from_gradient`; otherwise they are orthogonal.
"""

from metalora.methods.method import Method
from metalora.methods.records import AnyRank

TENSORPEFT = Method(
    name="tensorpeft",
    title="TensorPEFT",
    source="HF Angshul/TensorPEFT",
    formula="ΔW_{l,p} = Σ_k a_k u^L_k[l] u^P_k[p] u^I_k (u^O_k)^T",
    factors={"a": "r", "uL": "layer r", "uP": "proj r", "uI": "kh kw in r", "uO": "out r"},
    init={"a": "zeros", **dict.fromkeys(("uL", "uP", "uI", "uO"), "orthogonal")},
    count="R*(L + M + K*I + O + 1)",
    replicated_over="",
    scale="alpha",
    mechanisms=(AnyRank(),),
    notes="Its start from a gradient on one batch: metalora.fitting.warm_start.atoms_from_gradient.",
)
