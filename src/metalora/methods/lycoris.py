"""LyCORIS (arXiv:2309.14859): Hadamard and Kronecker products, and convolutions with a Tucker core for the kernel.

Its plain LoCon is conv-lora. In LoKr the digits of both axes are as equal as possible, the smaller first (factor -1 of
its code); `config.digits` gives others, such as {"in": "8 96"}. The second factor of LoKr has a low rank, the first has
full rank; both factors of lokr-full have full rank.
"""

from metalora.methods.method import Method
from metalora.methods.records import GateCircuit

LOHA = Method(
    name="loha",
    title="LoHa",
    source="arXiv:2108.06098, arXiv:2309.14859",
    formula="ΔW = (A1 B1) ⊙ (A2 B2)",
    factors={"A1": "kh kw in r1", "B1": "r1 out", "A2": "kh kw in r2", "B2": "r2 out"},
    init={"A1": "normal:1", "B1": "normal:0.1", "A2": "normal:1", "B2": "zeros"},
    count="2*R*(K*I + O)",
    export="R**2",  # the rank of a Hadamard product is at most the product of the ranks
    notes="As a low-rank product: the row-wise products of A1 and A2, and of B1 and B2.",
)

LOKR = Method(
    name="lokr",
    title="LoKr",
    source="arXiv:2309.14859",
    formula="ΔW = C ⊗ (A B)",
    factors={"C": "i1 o1", "A": "kh kw i2 r", "B": "r o2"},
    init={"C": "kaiming", "A": "kaiming", "B": "zeros"},
    count="i1*o1 + R*(K*i2 + o2)",
    export="i1*R",
    folds={"in": "i1 i2", "out": "o1 o2"},
)

LOKR_FULL = Method(
    name="lokr-full",
    title="LoKr with two full factors",
    source="arXiv:2309.14859",
    formula="ΔW = C ⊗ D",
    factors={"C": "i1 o1", "D": "kh kw i2 o2"},
    init={"C": "kaiming", "D": "zeros"},
    count="i1*o1 + K*i2*o2",
    export="O",
    folds={"in": "i1 i2", "out": "o1 o2"},
    mechanisms=(GateCircuit(),),
    scale="alpha",
    notes="It has no rank. Its code then takes alpha for r, a scale of one; PEFT's stays at alpha / r.",
)

LOCON_TUCKER = Method(
    name="locon-tucker",
    title="LoCon with a Tucker core",
    source="arXiv:2309.14859",
    formula="ΔW[h,w,i,o] = Σ_{r1,r2} A[i,r1] M[h,w,r1,r2] B[r2,o]",
    factors={"A": "in r1", "M": "kh kw r1 r2", "B": "r2 out"},
    init={"A": "kaiming", "M": "kaiming", "B": "zeros"},
    count="R*(I + O) + K*R**2",
)

LOHA_TUCKER = Method(
    name="loha-tucker",
    title="LoHa with Tucker cores",
    source="arXiv:2309.14859",
    formula="ΔW[h,w,*,*] = (A1 M1[h,w] B1) ⊙ (A2 M2[h,w] B2)",
    factors={
        "A1": "in a1", "M1": "kh kw a1 b1", "B1": "b1 out",
        "A2": "in a2", "M2": "kh kw a2 b2", "B2": "b2 out",
    },
    init={
        "A1": "normal:1", "M1": "normal:0.1", "B1": "normal:0.1",
        "A2": "normal:1", "M2": "normal:0.1", "B2": "zeros",
    },
    count="2*(R*(I + O) + K*R**2)",
    export="R**2",
)  # fmt: skip

LOKR_TUCKER = Method(
    name="lokr-tucker",
    title="LoKr with a Tucker core",
    source="arXiv:2309.14859",
    formula="ΔW[h,w,*,*] = C ⊗ (A M[h,w] B)",
    factors={"C": "i1 o1", "A": "i2 r1", "M": "kh kw r1 r2", "B": "r2 o2"},
    init={"C": "kaiming", "A": "kaiming", "M": "kaiming", "B": "zeros"},
    count="i1*o1 + R*(i2 + o2) + K*R**2",
    export="i1*R",
    folds={"in": "i1 i2", "out": "o1 o2"},
)
