"""MultiLoRA (arXiv:2311.11501): N parallel LoRAs, each output scaled by a learned vector that starts at zero."""

from metalora.methods.method import Method

MULTI_LORA = Method(
    name="multi-lora",
    title="Multi-LoRA",
    source="arXiv:2311.11501",
    formula="ΔW = Σ_n A_n B_n diag(s_n)",
    factors={"A": "expert kh kw in r", "B": "expert r out", "s": "expert out"},
    init={"A": "kaiming", "B": "kaiming", "s": "zeros"},
    count="N*(R*(K*I + O) + O)",
    export="N*R",
    notes="The rank is that of each parallel module; ΔW has rank N r.",
)
