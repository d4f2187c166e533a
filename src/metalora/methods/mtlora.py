"""MTLoRA (arXiv:2403.20320): a LoRA that all tasks share plus one for each task."""

from metalora.methods.method import Method

MTLORA = Method(
    name="mtlora",
    title="MTLoRA",
    source="arXiv:2403.20320",
    formula="ΔW_t = s (A B + A_t B_t)",
    factors={"A": "kh kw in r", "B": "r out", "At": "task kh kw in rt", "Bt": "task rt out"},
    init={"A": "kaiming", "B": "zeros", "At": "kaiming", "Bt": "zeros"},
    count="R*(K*I + O) + T*R*(K*I + O)",
    export="2*R",
    terms=(("A", "B"), ("At", "Bt")),  # without terms all four factors would be one product
    scale="alpha",
    notes="Each example has one task; the paper's several outputs of one input, one per task, are as many calls.",
)
