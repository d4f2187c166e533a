"""TensLoRA (ax-le/TensLoRA): LoRA's updates stacked over heads, projections and layers into tensors of order 3 to 5.

There are seven constructions: Att stacks heads, QKV stacks projections, Depth stacks layers. Every coordinate that is
not stacked has a network of its own. A factor is named by the size of its mode. The authors' code accepts a rank above
the size of a mode (isorank) and gives head h the outputs j H + h (order="tenslora"); in models they are h J + j. Its CP
has weights that are all one and not learned, so they are left out here. Its normal start is init "unit". Trains and
rings are future work of its authors: here the modes are in the order of MetaTT and the first core is zero.
"""

from metalora.methods.method import Method
from metalora.methods.records import AnyRank
from metalora.tensornet.formats import cp, ring, tt, tucker

AXES = {"I": "kh kw in", "O": "out", "J": "hdim", "H": "head", "M": "proj", "L": "layer"}
CONSTRUCTIONS = {
    "att": "IJH", "qkv": "IOM", "depth": "IOL", "att-qkv": "IJHM", "att-depth": "IJHL", "qkv-depth": "IOML",
    "att-qkv-depth": "IJHML",
}  # fmt: skip
WIRED = {"tucker": tucker, "cp": cp, "tt": tt, "ring": ring}


def _count(form: str, order: str) -> str:
    sizes = ["K*I" if one == "I" else one for one in order]
    if form == "tt":
        return f"R*({sizes[0]} + {sizes[-1]}) + R**2*({' + '.join(sizes[1:-1])})"
    total = f"R{'**2' if form == 'ring' else ''}*({' + '.join(sizes)})"
    return f"{total} + R**{len(order)}" if form == "tucker" else total


def _formula(form: str, order: str) -> str:
    if form == "tucker":
        return "ΔW = core " + " ".join(f"×_{k} {one}" for k, one in enumerate(order, start=1))
    if form == "cp":
        return "ΔW = Σ_r " + " ".join(f"{one}[·,r]" for one in order)
    return ("ΔW = tr " if form == "ring" else "ΔW = ") + " ".join(f"{one}[·]" for one in order)


def _init(form: str, order: str) -> dict[str, str]:
    if form == "tucker":
        return {**dict.fromkeys(order, "orthogonal"), "core": "zeros"}
    other = "kaiming" if form == "cp" else "orthogonal"
    return {one: "zeros" if one == "I" else other for one in order}


def _tenslora(construction: str, letters: str, form: str) -> Method:
    future = form in ("tt", "ring")
    order = "".join(sorted(letters, key="ILMHJO".index)) if future else letters
    return Method(
        name=f"tenslora-{construction}" + ("" if form == "tucker" else f"-{form}"),
        title=f"TensLoRA {construction.replace('-', '_')} ({form})",
        source="ax-le/TensLoRA" + (", future work" if future else ""),
        formula=_formula(form, order),
        factors=WIRED[form]({one: AXES[one] for one in order}),
        init=_init(form, order),
        count=_count(form, order),
        export="R**2" if form == "ring" else "R",
        folds={"out": "head hdim"} if "H" in letters else {},
        replicated_over=" ".join(mode for mode, letter in (("layer", "L"), ("proj", "M")) if letter not in letters),
        scale="alpha",
        mechanisms=(AnyRank(),),
    )


TENSLORA = tuple(_tenslora(name, letters, form) for form in WIRED for name, letters in CONSTRUCTIONS.items())
