"""rsLoRA (arXiv:2312.03732): LoRA scaled by alpha over the root of the rank."""

from metalora.methods.method import Method
from metalora.tensornet.formats import matrix

RSLORA = Method(
    name="rslora",
    title="rsLoRA",
    source="arXiv:2312.03732",
    formula="ΔW = A B, scaled by α/√r",
    factors=matrix("kh kw in", "out"),
    init={"A": "kaiming", "B": "zeros"},
    count="R*(K*I + O)",
    scale="alpha/sqrt(r)",
)
