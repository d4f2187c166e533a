"""PiSSA (arXiv:2404.02948): LoRA that starts at the principal singular values and vectors of the weight."""

from metalora.methods.method import FROM_WEIGHT, Method
from metalora.methods.records import StartFromWeight
from metalora.tensornet.formats import matrix

PISSA = Method(
    name="pissa",
    title="PiSSA",
    source="arXiv:2404.02948",
    formula="ΔW = A B - A_0 B_0,  A_0 B_0 the part of the r largest singular values of W",
    factors=matrix("kh kw in", "out"),
    init={"A": FROM_WEIGHT, "B": FROM_WEIGHT},
    count="R*(K*I + O)",
    export="2*R",
    mechanisms=(StartFromWeight("svd"),),
    notes="The base keeps its weight: changes of A and B are learned and saved, their start is computed from the base.",
)
