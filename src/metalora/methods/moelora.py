"""MOELoRA (arXiv:2310.18339): a soft mixture of N LoRA experts of rank r/N, weighted by a gate.

The gate is one per target or generated (moe-lora), one per task (moe-lora-shared), or one per task and target
(moe-lora-task, as in the paper's code).
"""

from metalora.methods.method import Method
from metalora.methods.records import Composite, FixedBonds, Gated, SplitRank

MOE_LORA = Method(
    name="moe-lora",
    title="MoE-LoRA (soft gate)",
    source="arXiv:2310.18339",
    formula="ΔW = Σ_n g_n A_n B_n,  g = softmax(·)",
    factors={"A": "expert kh kw in r", "g": "expert", "B": "expert r out"},  # summed over expert, as over a bond
    init={"A": "kaiming", "g": "zeros", "B": "zeros"},  # equal logits: every expert has the weight 1 / N
    count="R*(K*I + O) + N",
    generated=("g",),
    mechanisms=(SplitRank(), Gated(("g",))),
    notes="With scope: constant the gate is one learned vector per target; if it is generated, it depends on features.",
)

MOE_LORA_SHARED = Method(
    name="moe-lora-shared",
    title="MoE-LoRA with one gate per task",
    source="arXiv:2310.18339",
    formula="ΔW = Σ_n g_n(t) A_n B_n,  g(t) = softmax(g_t), the same at all targets",
    factors={"A": "expert kh kw in r", "g": "task expert", "B": "expert r out"},
    init={"A": "normal:0.01", "g": "zeros", "B": "zeros"},
    count="R*(K*I + O) + T*N",
    replicated_over={"A": "target", "g": "", "B": "target"},
    mechanisms=(SplitRank(), Gated(("g",))),
    notes="Its gates are learned directly, not through the paper's embedding of 64 numbers per task.",
)

MOE_LORA_TASK = Method(
    name="moe-lora-task",
    title="MoE-LoRA with one gate per task and target",
    source="arXiv:2310.18339, its code",
    formula="ΔW = Σ_n g_n(t) A_n B_n,  g(t) = softmax(E[t] G)",
    factors={"A": "expert kh kw in r", "E": "task e", "G": "e expert", "B": "expert r out"},
    init={"A": "normal:0.01", "E": "normal:1", "G": "kaiming", "B": "zeros"},
    count="R*(K*I + O) + 64*T + 64*N",
    # in this order: g is first contracted, then passed through the softmax
    mechanisms=(SplitRank(), FixedBonds({"e": 64}), Composite({"g": "E G"}), Gated(("g",))),
    notes="The embedding in its code has one unused row more than there are tasks; MetaTT's counts include that row.",
)
