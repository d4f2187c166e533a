"""FacT (JieShibo/PETL-ViT): all weights of a ViT, cut into d x d slices (widths="chunk"), form one tensor."""

from dataclasses import replace

from metalora.methods.method import Method
from metalora.methods.records import AnyRank, Composite

FACT_TT = Method(
    name="fact-tt",
    title="FacT-TT",
    source="arXiv:2212.03145",
    formula="ΔW_k = s U Σ_k V",
    factors={"U": "kh kw in r1", "S": "r1 layer proj r2", "V": "r2 out"},  # k of the paper is (layer, proj)
    init={"U": "kaiming", "S": "kaiming", "V": "zeros"},
    count="R*(K*I + O) + L*M*R**2",
    replicated_over="",
    scale="alpha",
    notes="k counts the slices of all layers. Published: 0.037M on average, 39,734 by the ranks of its files.",
)

FACT_TK = Method(
    name="fact-tk",
    title="FacT-TK",
    source="arXiv:2212.03145",
    formula="ΔW_k = s U (Σ_c C[:,:,c] P[c,k]) V",
    factors={"U": "kh kw in r1", "C": "r1 r2 r3", "P": "r3 layer proj", "V": "r2 out"},
    init={"U": "kaiming", "C": "xavier", "P": "xavier", "V": "zeros"},  # V = 0: it starts as the base
    count="R*(K*I + O) + R*L*M + R**3",
    replicated_over="",
    scale="alpha",
    mechanisms=(AnyRank(),),
    notes="Slices are frontal, as in the paper; fact-tk-code has them as in its code. C and P are normal here; "
    "its code has uniform ones of the same variance.",
)

FACT_TK_CODE = replace(
    FACT_TK,
    name="fact-tk-code",
    title="FacT-TK (slices of an MLP interleaved)",
    source="arXiv:2212.03145, its code",
    formula="ΔW_k = s U M_k V,  M_k the k-th block of (Σ_c C[:,:,c] P[c,·]) read as (r, 4 r)",
    mechanisms=(AnyRank(), Composite({"S": "C P"}, mixed_slices=True)),
    notes="Its code reads an MLP's four slices of a layer, (r, r, 4), as (r, 4 r), and transposes the second layer's.",
)
