"""FacT (JieShibo/PETL-ViT): every weight of a ViT cut into d x d slices (widths="chunk"), all slices one tensor."""

from metalora.methods.method import Method

FACT_TT = Method(
    name="fact-tt",
    title="FacT-TT",
    source="arXiv:2212.03145",
    formula="ΔW_k = s U Σ_k V",
    factors={"U": "kh kw in r1", "S": "r1 layer proj r2", "V": "r2 out"},
    init={"U": "kaiming", "S": "kaiming", "V": "zeros"},
    count="R*(K*I + O) + L*M*R**2",
    copies="",
    scale="alpha",
    notes="k counts the slices of all layers. Of the published averages over data sets, 0.037M is not reproduced.",
)

FACT_TK = Method(
    name="fact-tk",
    title="FacT-TK",
    source="arXiv:2212.03145",
    formula="ΔW_k = s U (Σ_c C[:,:,c] P[c,k]) V",
    factors={"U": "kh kw in r1", "C": "r1 r2 r3", "P": "r3 layer proj", "V": "r2 out"},
    init={"U": "kaiming", "C": "xavier", "P": "xavier", "V": "zeros"},
    count="R*(K*I + O) + R*L*M + R**3",
    copies="",
    scale="alpha",
    any_rank=True,
    notes="Slices are frontal, as in the paper; its code reads an MLP's (r, r, 4) as (r, 4 r), which interleaves four.",
)
