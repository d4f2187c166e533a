"""AdaLoRA (arXiv:2303.10512): ΔW in the form of a singular value decomposition.

This is the network only; its orthogonality penalty and its budget of singular values are `TrainConfig.rank_budget`.
"""

from metalora.methods.method import Method

ADALORA = Method(
    name="adalora",
    title="AdaLoRA",
    source="arXiv:2303.10512",
    formula="ΔW = P diag(E) Q",
    factors={"P": "kh kw in r", "E": "r", "Q": "r out"},
    init={"P": "normal:0.02", "E": "zeros", "Q": "normal:0.02"},  # N(0, 0.02^2), as in its code
    count="R*(K*I + O + 1)",
    notes="Its budget and penalty: TrainConfig.rank_budget. Its code scales by alpha / (r + 1e-5).",
)
