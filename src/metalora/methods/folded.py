"""Adapters whose axes are folded into digits, big-endian: TT-LoRA (lanl/TTLoRAMoE) and LoRETTA_rep (arXiv:2402.11417).

Three digits an axis, as equal as they can be for any width, the smaller first; config.digits gives others, as many as
one likes. Both official codes start away from the base; here the last core is zero.
"""

from collections.abc import Mapping

from metalora.methods.method import Method
from metalora.network.formats import tt


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
        refold=_tt_lora,
        scale="alpha",
        any_rank=True,
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
        refold=_loretta_rep,
        any_rank=True,
        notes="Bond r is LoRA's rank, the others are those of the trains. Its published 0.05M is not reproduced.",
    )


TT_LORA, LORETTA_REP = _tt_lora({}), _loretta_rep({})
