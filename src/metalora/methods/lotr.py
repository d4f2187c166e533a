"""LoTR (arXiv:2402.01376, daskol/lotr): two bases that all targets share, and a core for each target."""

from metalora.methods.method import Method

LOTR = Method(
    name="lotr",
    title="LoTR",
    source="arXiv:2402.01376",
    formula="ΔW_{l,p} = U C[l,p] V",
    factors={"U": "kh kw in r1", "C": "r1 layer proj r2", "V": "r2 out"},
    init={"U": "normal:1", "C": "zeros", "V": "normal:1"},
    count="R*(K*I + O) + L*M*R**2",
    replicated_over="",
    notes="A Tucker-2 tensor, or a train of three cores whose middle one counts layers and projections together.",
)
