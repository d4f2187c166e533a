"""LoRA (arXiv:2106.09685) and its convolutional form, Conv-LoRA (arXiv:2504.00460, III-A).

Conv-LoRA *is* LoCon of LyCORIS and PEFT's LoRA on Conv2d: a K x K convolution to r channels, then 1 x 1.
"""

from metalora.methods.method import Method
from metalora.tensornet.formats import matrix

LORA = Method(
    name="lora",
    title="LoRA",
    source="arXiv:2106.09685",
    formula="ΔW = A B",
    factors=matrix("kh kw in", "out"),
    init={"A": "kaiming", "B": "zeros"},
    count="R*(K*I + O)",
)

CONV_LORA = Method(
    name="conv-lora",
    title="Conv-LoRA",
    source="arXiv:2504.00460, eq. 5",
    formula="ΔW[h,w,i,o] = Σ_r A[h,w,i,r] B[r,o]   (eq. 5)",
    factors=matrix("kh kw in", "out"),
    init={"A": "kaiming", "B": "zeros"},
    count="R*(K*I + O)",
    notes="The same network as lora, LoCon (LyCORIS) and PEFT's LoRA on Conv2d.",
)
