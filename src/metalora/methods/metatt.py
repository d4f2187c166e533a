"""MetaTT (arXiv:2506.09105): one tensor train over inputs, layers, projections, heads, tasks and outputs.

The default initialisation is the paper's ze-id-id-id: the first core is zero, and every slice of the others is the
identity. Then only G1 has a gradient at the first step, and only the first r outputs of a head or a row change until
the other cores have learned.
"""

from metalora.methods.method import Method
from metalora.tensornet.formats import tt


def _metatt(name: str, title: str, equation: str, modes: str, formula: str, count: str) -> Method:
    cores = {f"G{place}": mode for place, mode in enumerate(modes.split(), start=1)}
    return Method(
        name=name,
        title=title,
        source=f"arXiv:2506.09105, {equation}",
        formula=formula,
        factors=tt(
            {**cores, "G1": "kh kw in"}
        ),  # the paper has no convolutions; kh and kw are with in, as in Conv-LoRA
        init={core: "zeros" if core == "G1" else "identity" for core in cores},
        count=count,
        # head h, position j is output h J + j, as models store the weights of their heads
        folds={"out": "head hdim"} if "hdim" in cores.values() else {},
        replicated_over="",  # one train for all targets, which select slices by layer, proj and task
        scale="alpha",
    )


METATT_4D = _metatt(
    name="metatt-4d",
    title="MetaTT-4D",
    equation="eq. 5",
    modes="in layer proj out",
    formula="ΔW_{l,m} = G1 G2[l] G3[m] G4   (eq. 5)",
    count="R*K*I + R*R*(L + M) + R*O",
)
METATT_5D = _metatt(
    name="metatt-5d",
    title="MetaTT-5D",
    equation="eq. 3",
    modes="in layer proj head hdim",
    formula="ΔW_{l,m,h} = G1 G2[l] G3[m] G4[h] G5   (eq. 3, Fig. 1b)",
    count="R*K*I + R*R*(L + M + H) + R*J",
)
METATT_4P1D = _metatt(
    name="metatt-4+1d",
    title="MetaTT-(4+1)D",
    equation="eq. 6",
    modes="in layer task proj out",
    formula="ΔW_{l,t,m} = G1 G2[l] G3[t] G4[m] G5   (eq. 6)",
    count="R*K*I + R*R*(L + T + M) + R*O",
)
METATT_6D = _metatt(
    name="metatt-6d",
    title="MetaTT-6D",
    equation="eq. 4",
    modes="in layer proj head task hdim",
    formula="ΔW_{l,m,h,t} = G1 G2[l] G3[m] G4[h] G5[t] G6   (eq. 4)",
    count="R*K*I + R*R*(L + M + H + T) + R*J",
)
