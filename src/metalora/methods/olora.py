"""OLoRA (arXiv:2406.01775): LoRA that starts at the first columns and rows of a QR decomposition of the weight."""

from metalora.methods.method import FROM_WEIGHT, Method
from metalora.methods.records import StartFromWeight
from metalora.tensornet.formats import matrix

OLORA = Method(
    name="olora",
    title="OLoRA",
    source="arXiv:2406.01775",
    formula="ΔW = A B - A_0 B_0,  W^T = Q R, A_0 = R_r^T, B_0 = Q_r^T",
    factors=matrix("kh kw in", "out"),
    init={"A": FROM_WEIGHT, "B": FROM_WEIGHT},
    count="R*(K*I + O)",
    export="2*R",
    mechanisms=(StartFromWeight("qr"),),
    notes="The base keeps its weight: changes of A and B are learned and saved, their start is computed from the base.",
)
