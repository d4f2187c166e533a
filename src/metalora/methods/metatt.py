"""MetaTT (arXiv:2506.09105): one tensor train over inputs, layers, projections, heads, tasks and outputs.

The default initialisation is the paper's ze-id-id-id: the first core is zero, and every slice of the others is the
identity. Then only G1 has a gradient at the first step, and only the first r outputs of a head or a row change until
the other cores have learned.
"""

from metalora.methods.method import Method
from metalora.tensornet.formats import tt


def _metatt(name: str, title: str, modes: str, formula: str, count: str, heads: bool, eq: str) -> Method:
    own = {f"G{k}": "kh kw in" if mode == "in" else mode for k, mode in enumerate(modes.split(), start=1)}
    return Method(
        name=name,
        title=title,
        source=f"arXiv:2506.09105, {eq}",
        formula=formula,
        factors=tt(own),
        init={factor: "zeros" if factor == "G1" else "identity" for factor in own},
        count=count,
        folds={"out": "head hdim"} if heads else {},
        replicated_over="",
        scale="alpha",
    )


METATT_4D = _metatt(
    "metatt-4d", "MetaTT-4D", "in layer proj out", "ΔW_{l,m} = G1 G2[l] G3[m] G4   (eq. 5)",
    "R*K*I + R*R*(L + M) + R*O", False, "eq. 5",
)  # fmt: skip
METATT_5D = _metatt(
    "metatt-5d", "MetaTT-5D", "in layer proj head hdim", "ΔW_{l,m,h} = G1 G2[l] G3[m] G4[h] G5   (eq. 3, Fig. 1b)",
    "R*K*I + R*R*(L + M + H) + R*J", True, "eq. 3",
)  # fmt: skip
METATT_4P1D = _metatt(
    "metatt-4+1d", "MetaTT-(4+1)D", "in layer task proj out", "ΔW_{l,t,m} = G1 G2[l] G3[t] G4[m] G5   (eq. 6)",
    "R*K*I + R*R*(L + T + M) + R*O", False, "eq. 6",
)  # fmt: skip
METATT_6D = _metatt(
    "metatt-6d", "MetaTT-6D", "in layer proj head task hdim",
    "ΔW_{l,m,h,t} = G1 G2[l] G3[m] G4[h] G5[t] G6   (eq. 4)",
    "R*K*I + R*R*(L + M + H + T) + R*J", True, "eq. 4",
)  # fmt: skip
