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
    "att": "IJH",
    "qkv": "IOM",
    "depth": "IOL",
    "att-qkv": "IJHM",
    "att-depth": "IJHL",
    "qkv-depth": "IOML",
    "att-qkv-depth": "IJHML",
}  # construction -> the letters of its axes
FORMATS = {"tucker": tucker, "cp": cp, "tt": tt, "ring": ring}
FUTURE_WORK = ("tt", "ring")


def _count(format_name: str, letters: str) -> str:
    sizes = ["K*I" if letter == "I" else letter for letter in letters]  # kernel modes are with the inputs
    if format_name == "tt":
        # the first and the last core have one bond, all others two
        return f"R*({sizes[0]} + {sizes[-1]}) + R**2*({' + '.join(sizes[1:-1])})"
    rank = "R**2" if format_name == "ring" else "R"  # in a ring every core has two bonds
    count = f"{rank}*({' + '.join(sizes)})"
    return f"{count} + R**{len(letters)}" if format_name == "tucker" else count


def _formula(format_name: str, letters: str) -> str:
    if format_name == "tucker":
        return "ΔW = core " + " ".join(f"×_{place} {letter}" for place, letter in enumerate(letters, start=1))
    if format_name == "cp":
        return "ΔW = Σ_r " + " ".join(f"{letter}[·,r]" for letter in letters)
    trace = "tr " if format_name == "ring" else ""
    return f"ΔW = {trace}" + " ".join(f"{letter}[·]" for letter in letters)


def _init(format_name: str, letters: str) -> dict[str, str]:
    if format_name == "tucker":  # the core is what is zero
        return {**dict.fromkeys(letters, "orthogonal"), "core": "zeros"}
    nonzero = "kaiming" if format_name == "cp" else "orthogonal"
    return {letter: "zeros" if letter == "I" else nonzero for letter in letters}


def _tenslora(construction: str, letters: str, format_name: str) -> Method:
    is_future_work = format_name in FUTURE_WORK
    if is_future_work:
        letters = "".join(sorted(letters, key="ILMHJO".index))  # the order of MetaTT
    unstacked = [mode for mode, letter in (("layer", "L"), ("proj", "M")) if letter not in letters]
    return Method(
        name=f"tenslora-{construction}" + ("" if format_name == "tucker" else f"-{format_name}"),
        title=f"TensLoRA {construction.replace('-', '_')} ({format_name})",
        source="ax-le/TensLoRA" + (", future work" if is_future_work else ""),
        formula=_formula(format_name, letters),
        factors=FORMATS[format_name]({letter: AXES[letter] for letter in letters}),
        init=_init(format_name, letters),
        count=_count(format_name, letters),
        export="R**2" if format_name == "ring" else "R",
        folds={"out": "head hdim"} if "H" in letters else {},
        replicated_over=" ".join(unstacked),
        scale="alpha",
        mechanisms=(AnyRank(),),
    )


TENSLORA = tuple(
    _tenslora(construction, letters, format_name)
    for format_name in FORMATS
    for construction, letters in CONSTRUCTIONS.items()
)
