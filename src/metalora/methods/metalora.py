"""MetaLoRA (arXiv:2504.00460): a CP vector or tensor-ring matrix generated from features, and the square core.

Corrections of the printed text: eq. 6 lists A twice, and c_r is one number of c in R^R; the A of the ring at a
convolution has the kernel modes too. The ring at rank R has exactly the shared parameters, the generated numbers and
the rank of CP at R^2. The paper states no initialisation and no scale; here B = 0, c0 = 1 or the identity, and alpha /
R.
"""

from metalora.methods.method import Method

METALORA_CP = Method(
    name="metalora-cp",
    title="MetaLoRA (CP)",
    source="arXiv:2504.00460, eq. 6",
    formula="ΔW = Σ_r A[*,r] c_r B[r,*]   (eq. 6)",
    factors={"A": "kh kw in r", "c": "r", "B": "r out"},  # r occurs three times: a diagonal between A and B
    init={"A": "kaiming", "c": "ones", "B": "zeros"},
    count="R*(K*I + O) + R",
    generated=("c",),
)

METALORA_TR = Method(
    name="metalora-tr",
    title="MetaLoRA (TR)",
    source="arXiv:2504.00460, eq. 7",
    formula="ΔW = Σ_{r0,r1,r2} A[r0,*,r1] B[r1,*,r2] C[r2,r0]   (eq. 7)",
    # r0 closes the ring: C[r2, r0] is the matrix that joins the two ends of A B
    factors={"A": "r0 kh kw in r1", "B": "r1 out r2", "C": "r2 r0"},
    init={"A": "kaiming", "B": "zeros", "C": "identity"},
    count="R**2*(K*I + O) + R**2",
    export="R**2",
    generated=("C",),
)

METALORA_SQUARE = Method(
    name="metalora-square",
    title="MetaLoRA (full square core)",
    source="this library; the core of LoRA-XS and MTL-LoRA, generated",
    formula="ΔW = A C B",
    factors={"A": "kh kw in r0", "C": "r0 r1", "B": "r1 out"},
    init={"A": "kaiming", "C": "identity", "B": "zeros"},
    count="R*(K*I + O) + R**2",
    generated=("C",),
)
