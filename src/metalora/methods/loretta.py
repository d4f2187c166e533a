"""LoRETTA (arXiv:2402.11417): LoRA's two matrices, or the two maps of a bottleneck adapter, as tensor trains of digits.

There are three digits per axis, big-endian and as equal as possible for any width, the smaller first; `config.digits`
gives others, as many as one likes. The official code starts away from the base; here the last core is zero.
"""

from collections.abc import Mapping, Sequence

from metalora.methods.digits import digit_modes
from metalora.methods.method import Method
from metalora.methods.records import AnyRank, Biased, NonlinearBottleneck, Tensorised
from metalora.tensornet.formats import tt


def _loretta_rep(digits: Mapping[str, int]) -> Method:
    inputs = digit_modes("i", digits.get("in", 3))
    outputs = digit_modes("o", digits.get("out", 3))
    left = _train_to_rank("A", inputs, kernel="kh kw ")
    right = _train_to_rank("B", outputs)
    last_core = [*right][-1]
    inner_sizes = " + ".join([*inputs[1:], *outputs[1:], "2"])  # 2: the cores A and B that end in r have no digit
    return Method(
        name="loretta-rep",
        title="LoRETTA_rep",
        source="arXiv:2402.11417",
        formula=f"ΔW = fold({' '.join(left)}) fold({' '.join(right)})^T",
        factors={**left, **right},
        init={core: "zeros" if core == last_core else "orthogonal" for core in (*left, *right)},
        count=f"R*(K*i1 + o1) + R**2*({inner_sizes})",
        folds={"in": " ".join(inputs), "out": " ".join(outputs)},
        mechanisms=(AnyRank(), Tensorised(_loretta_rep)),
        notes="Bond r is LoRA's rank, the others are those of the trains. Its published 0.05M is not reproduced.",
    )


def _train_to_rank(name: str, digits: Sequence[str], kernel: str = "") -> dict[str, str]:
    """A train over the digits of an axis that ends in the rank r: {"A1": "i1 a1", "A2": "a1 i2 a2", "A3": "a2 r"}."""
    bond = name.lower()
    cores = {f"{name}1": f"{kernel}{digits[0]} {bond}1"}
    for place, digit in enumerate(digits[1:], start=2):
        cores[f"{name}{place}"] = f"{bond}{place - 1} {digit} {bond}{place}"
    cores[f"{name}{len(digits) + 1}"] = f"{bond}{len(digits)} r"
    return cores


def _loretta_adp(digits: Mapping[str, int]) -> Method:
    inputs = digit_modes("i", digits.get("in", 3))
    outputs = digit_modes("o", digits.get("out", 3))
    hidden = digit_modes("m", digits.get("hidden", 2))
    down = _train("D", [*inputs, *hidden])
    up = _train("U", [*hidden, *outputs])
    last_core = [*up][-1]  # zero: then the bottleneck adds nothing at first
    init = {core: "zeros" if core == last_core else "orthogonal" for core in (*down, *up)}
    inner_sizes = " + ".join([*inputs[1:], *hidden[:-1], *hidden[1:], *outputs[:-1]])
    train_count = f"R*(i1 + {hidden[-1]} + m1 + {outputs[-1]}) + R**2*({inner_sizes})"
    return Method(
        name="loretta-adp",
        title="LoRETTA_adp",
        source="arXiv:2402.11417",
        formula="ΔW: none; z + s (tanh(z fold(D1 ... D_d) + b) fold(U1 ... U_d) + c), z the layer's output",
        factors={**down, **up, "b": " ".join(hidden), "c": "out"},
        init={**init, "b": "zeros", "c": "zeros"},
        count=f"{train_count} + {'*'.join(hidden)} + O",
        export="none",
        folds={"in": " ".join(inputs), "out": " ".join(outputs), "hidden": " ".join(hidden)},
        terms=(tuple(down), tuple(up)),
        scale="alpha",
        mechanisms=(
            NonlinearBottleneck(hidden=64, activation="tanh"),
            Biased(("b", "c")),
            AnyRank(),
            Tensorised(_loretta_adp),
        ),
        notes="Not mergeable. Behind attention.output.dense and output.dense of BERTs; the rank is of both trains, "
        "the bottleneck has 64 numbers, or as many as digits['hidden'] makes.",
    )


def _train(name: str, digits: Sequence[str]) -> dict[str, str]:
    """A train over digits with bonds of its own, such as d1, d2, ... of the cores D1, D2, ..."""
    cores = tt({f"{name}{place}": digit for place, digit in enumerate(digits, start=1)})
    # the bonds of `tt` are r1, r2, ...; digits are named i1, m1, o1, so that only bonds have an r
    return {core: spec.replace("r", name.lower()) for core, spec in cores.items()}


LORETTA_REP = _loretta_rep({})
LORETTA_ADP = _loretta_adp({})
