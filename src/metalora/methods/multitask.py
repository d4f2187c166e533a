"""Several tasks at every target: MTL-LoRA (arXiv:2410.09437), one LoRA a task, and experts that a task weighs."""

from metalora.methods.method import Method
from metalora.methods.records import Composite, FixedBonds, Gated, SplitRank

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

MTLORA = Method(
    name="mtlora",
    title="MTLoRA",
    source="arXiv:2403.20320",
    formula="ΔW_t = s (A B + A_t B_t)",
    factors={"A": "kh kw in r", "B": "r out", "At": "task kh kw in rt", "Bt": "task rt out"},
    init={"A": "kaiming", "B": "zeros", "At": "kaiming", "Bt": "zeros"},
    count="R*(K*I + O) + T*R*(K*I + O)",
    export="2*R",
    terms=(("A", "B"), ("At", "Bt")),
    scale="alpha",
    notes="Each example takes its own task; the paper's several outputs of one input, task by task, are as many calls.",
)

TASK_LORA = Method(
    name="task-lora",
    title="One LoRA a task",
    source="the oracle that multi-task methods are compared with",
    formula="ΔW_t = A_t B_t",
    factors={"A": "task kh kw in r", "B": "task r out"},
    init={"A": "kaiming", "B": "zeros"},
    count="T*R*(K*I + O)",
)

MOE_LORA_SHARED = Method(
    name="moe-lora-shared",
    title="MoE-LoRA with one gate a task",
    source="arXiv:2310.18339",
    formula="ΔW = Σ_n g_n(t) A_n B_n,  g(t) = softmax(g_t), the same at all targets",
    factors={"A": "expert kh kw in r", "g": "task expert", "B": "expert r out"},
    init={"A": "normal:0.01", "g": "zeros", "B": "zeros"},
    count="R*(K*I + O) + T*N",
    replicated_over={"A": "target", "g": "", "B": "target"},
    mechanisms=(SplitRank(), Gated(("g",))),
    notes="Its gates are learned themselves, not through the paper's embedding of 64 numbers a task.",
)

MOE_LORA_TASK = Method(
    name="moe-lora-task",
    title="MoE-LoRA with a gate a task and target",
    source="arXiv:2310.18339, its code",
    formula="ΔW = Σ_n g_n(t) A_n B_n,  g(t) = softmax(E[t] G)",
    factors={"A": "expert kh kw in r", "E": "task e", "G": "e expert", "B": "expert r out"},
    init={"A": "normal:0.01", "E": "normal:1", "G": "kaiming", "B": "zeros"},
    count="R*(K*I + O) + 64*T + 64*N",
    mechanisms=(SplitRank(), FixedBonds({"e": 64}), Composite({"g": "E G"}), Gated(("g",))),
    notes="Its code's embedding has one row more than tasks, which none uses; MetaTT's counts have that row.",
)
