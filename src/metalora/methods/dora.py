"""DoRA (arXiv:2402.09353): LoRA on the direction of the weight, and a learned magnitude of each output."""

from metalora.methods.method import Method
from metalora.methods.records import Magnitude
from metalora.tensornet.formats import matrix

DORA = Method(
    name="dora",
    title="DoRA",
    source="arXiv:2402.09353, eq. 5",
    formula="ΔW = (|W| + d) ⊙ (W + A B) / |W + A B| − W,  |·| the norm of each output's weights",
    factors=matrix("kh kw in", "out") | {"d": "out"},
    init={"A": "kaiming", "B": "zeros", "d": "zeros"},
    count="R*(K*I + O) + O",
    mechanisms=(Magnitude("d"),),
    notes="d, the change of the magnitude, starts at zero; |W + A B| has no gradient. Exported as PEFT's DoRA.",
)
