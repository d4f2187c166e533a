"""Adapters whose axes are folded into digits, big-endian: TT-LoRA (lanl/TTLoRAMoE) and LoRETTA (arXiv:2402.11417).

Three digits an axis, as equal as they can be for any width, the smaller first; config.digits gives others, as many as
one likes. All three official codes start away from the base; here the last core is zero.
"""

from collections.abc import Mapping

from metalora.methods.method import Method
from metalora.methods.records import AnyRank, Biased, NonlinearBottleneck, Tensorised
from metalora.tensornet.formats import tt


def _digits(letter: str, n: int) -> list[str]:
    return [f"{letter}{k}" for k in range(1, n + 1)]


def _tt_lora(digits: Mapping[str, int]) -> Method:
    ins, outs = _digits("i", digits.get("in", 3)), _digits("o", digits.get("out", 3))
    own = {f"G{k}": mode for k, mode in enumerate([*ins, *outs], start=1)}
    last = f"G{len(own)}"
    return Method(
        name="tt-lora",
        title="TT-LoRA",
        source="arXiv:2408.01008",
        formula=f"ΔW[({' '.join(ins)}), ({' '.join(outs)})] = {' '.join(f'{g}[{mode}]' for g, mode in own.items())}",
        factors=tt({**own, "G1": "kh kw i1"}),
        init={factor: "zeros" if factor == last else "orthogonal" for factor in own},
        count=f"R*(K*i1 + {outs[-1]}) + R**2*({' + '.join([*ins[1:], *outs[:-1]]) or 0})",
        folds={"in": " ".join(ins), "out": " ".join(outs)},
        mechanisms=(AnyRank(), Tensorised(_tt_lora)),
        scale="alpha",
    )


def _loretta_rep(digits: Mapping[str, int]) -> Method:
    ins, outs = _digits("i", digits.get("in", 3)), _digits("o", digits.get("out", 3))
    a, b = (
        {f"{side}{k}": f"{side.lower()}{k - 1} {mode} {side.lower()}{k}" for k, mode in enumerate(modes, start=1)}
        for side, modes in (("A", ins), ("B", outs))
    )
    a |= {"A1": "kh kw i1 a1", f"A{len(ins) + 1}": f"a{len(ins)} r"}
    b |= {"B1": "o1 b1", f"B{len(outs) + 1}": f"b{len(outs)} r"}
    return Method(
        name="loretta-rep",
        title="LoRETTA_rep",
        source="arXiv:2402.11417",
        formula=f"ΔW = fold({' '.join(a)}) fold({' '.join(b)})^T",
        factors={**a, **b},
        init={factor: "zeros" if factor == [*b][-1] else "orthogonal" for factor in (*a, *b)},
        count=f"R*(K*i1 + o1) + R**2*({' + '.join([*ins[1:], *outs[1:], '2'])})",
        folds={"in": " ".join(ins), "out": " ".join(outs)},
        mechanisms=(AnyRank(), Tensorised(_loretta_rep)),
        notes="Bond r is LoRA's rank, the others are those of the trains. Its published 0.05M is not reproduced.",
    )


def _loretta_adp(digits: Mapping[str, int]) -> Method:
    ins, outs = _digits("i", digits.get("in", 3)), _digits("o", digits.get("out", 3))
    hidden = _digits("m", digits.get("hidden", 2))
    down = {f"D{k}": mode for k, mode in enumerate([*ins, *hidden], start=1)}
    up = {f"U{k}": mode for k, mode in enumerate([*hidden, *outs], start=1)}
    wired = {
        name: spec.replace("r", name[0].lower()) for own in (down, up) for name, spec in tt(own).items()
    }  # the bonds d1, d2, ... and u1, u2, ...
    last = f"U{len(up)}"
    start = {factor: "zeros" if factor == last else "orthogonal" for factor in wired}
    inner = [*ins[1:], *hidden[:-1], *hidden[1:], *outs[:-1]]
    return Method(
        name="loretta-adp",
        title="LoRETTA_adp",
        source="arXiv:2402.11417",
        formula="ΔW: none; z + s (tanh(z fold(D1 ... D_d) + b) fold(U1 ... U_d) + c), z the layer's output",
        factors={**wired, "b": " ".join(hidden), "c": "out"},
        init={**start, "b": "zeros", "c": "zeros"},
        count=f"R*(i1 + {hidden[-1]} + m1 + {outs[-1]}) + R**2*({' + '.join(inner)}) + {'*'.join(hidden)} + O",
        export="none",
        folds={"in": " ".join(ins), "out": " ".join(outs), "hidden": " ".join(hidden)},
        terms=(tuple(down), tuple(up)),
        mechanisms=(
            NonlinearBottleneck(hidden=64, activation="tanh"),
            Biased(("b", "c")),
            AnyRank(),
            Tensorised(_loretta_adp),
        ),
        scale="alpha",
        notes="Not mergeable. Behind attention.output.dense and output.dense of BERTs; the rank is of both trains, "
        "the bottleneck has 64 numbers, or as many as digits['hidden'] makes.",
    )


TT_LORA, LORETTA_REP, LORETTA_ADP = _tt_lora({}), _loretta_rep({}), _loretta_adp({})
