"""Adapters whose axes are folded into digits, big-endian: TT-LoRA (lanl/TTLoRAMoE) and LoRETTA_rep (arXiv:2402.11417).

Three digits an axis, as equal as they can be for any width, the smaller first; config.digits gives others. Both
official codes start away from the base; here the last core is zero.
"""

from metalora.methods.method import Method
from metalora.network.formats import tt

FOLDS = {"in": "i1 i2 i3", "out": "o1 o2 o3"}
TRAIN = {"G1": "kh kw i1", "G2": "i2", "G3": "i3", "G4": "o1", "G5": "o2", "G6": "o3"}

TT_LORA = Method(
    name="tt-lora",
    title="TT-LoRA",
    source="arXiv:2408.01008",
    formula="ΔW[(i1 i2 i3), (o1 o2 o3)] = G1[i1] G2[i2] G3[i3] G4[o1] G5[o2] G6[o3]",
    factors=tt(TRAIN),
    init={factor: "zeros" if factor == "G6" else "orthogonal" for factor in TRAIN},
    count="R*(K*i1 + o3) + R**2*(i2 + i3 + o1 + o2)",
    folds=FOLDS,
    scale="alpha",
    any_rank=True,
)

LORETTA_REP = Method(
    name="loretta-rep",
    title="LoRETTA_rep",
    source="arXiv:2402.11417",
    formula="ΔW = fold(A1 A2 A3 A4) fold(B1 B2 B3 B4)^T",
    factors={
        "A1": "kh kw i1 a1", "A2": "a1 i2 a2", "A3": "a2 i3 a3", "A4": "a3 r",
        "B1": "o1 b1", "B2": "b1 o2 b2", "B3": "b2 o3 b3", "B4": "b3 r",
    },
    init={f"{side}{k}": "zeros" if (side, k) == ("B", 4) else "orthogonal" for side in "AB" for k in (1, 2, 3, 4)},
    count="R*(K*i1 + o1) + R**2*(i2 + i3 + o2 + o3 + 2)",
    folds=FOLDS,
    any_rank=True,
    notes="Bond r is LoRA's rank, the others are those of the trains. Its published 0.05M is not reproduced.",
)  # fmt: skip
