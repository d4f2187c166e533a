"""One LoRA for each task: the baseline that multi-task methods are compared with."""

from metalora.methods.method import Method

TASK_LORA = Method(
    name="task-lora",
    title="One LoRA per task",
    source="the baseline of multi-task methods",
    formula="ΔW_t = A_t B_t",
    factors={"A": "task kh kw in r", "B": "task r out"},
    init={"A": "kaiming", "B": "zeros"},
    count="T*R*(K*I + O)",
)
