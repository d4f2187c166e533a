"""Soft mixture of LoRA experts (MOELoRA, arXiv:2310.18339): N experts of rank r/N, weighted by a gate."""

from metalora.methods.method import Method
from metalora.methods.records import Gated, SplitRank

MOE_LORA = Method(
    name="moe-lora",
    title="MoE-LoRA (soft gate)",
    source="arXiv:2310.18339",
    formula="ΔW = Σ_n g_n A_n B_n,  g = softmax(·)",
    factors={"A": "expert kh kw in r", "g": "expert", "B": "expert r out"},
    init={"A": "kaiming", "g": "zeros", "B": "zeros"},
    count="R*(K*I + O) + N",
    generated=("g",),
    mechanisms=(SplitRank(), Gated(("g",))),
    notes="With scope: constant the gate is one learned vector per target; generated, it is a gate on features.",
)
