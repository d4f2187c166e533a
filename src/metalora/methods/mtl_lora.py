"""MTL-LoRA (arXiv:2410.09437): a core for each task, and up-projections that a gate of the task weighs."""

from metalora.methods.method import Method
from metalora.methods.records import Gated

MTL_LORA = Method(
    name="mtl-lora",
    title="MTL-LoRA",
    source="arXiv:2410.09437",
    formula="ΔW_t = A D_t Σ_n softmax(w_t / τ)_n B_n",
    factors={"A": "kh kw in r1", "D": "r1 task r2", "w": "task expert", "B": "expert r2 out"},
    init={"A": "kaiming", "D": "identity", "w": "normal:0.3", "B": "zeros"},
    count="R*K*I + T*R**2 + N*R*O + T*N",
    mechanisms=(Gated(("w",), temperature=0.1),),
    notes="For four tasks MetaTT's Table 13 prints the counts of three.",
)
