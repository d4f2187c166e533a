"""TT-LoRA (arXiv:2408.01008, lanl/TTLoRAMoE): one tensor train over the digits of both axes.

There are three digits per axis, big-endian and as equal as possible for any width, the smaller first; `config.digits`
gives others, as many as one likes. The official code starts away from the base; here the last core is zero.
"""

from collections.abc import Mapping

from metalora.methods.digits import digit_modes
from metalora.methods.method import Method
from metalora.methods.records import AnyRank, Tensorised
from metalora.tensornet.formats import tt


def _tt_lora(digits: Mapping[str, int]) -> Method:
    inputs = digit_modes("i", digits.get("in", 3))
    outputs = digit_modes("o", digits.get("out", 3))
    cores = {f"G{place}": mode for place, mode in enumerate([*inputs, *outputs], start=1)}
    last_core = f"G{len(cores)}"
    product = " ".join(f"{core}[{mode}]" for core, mode in cores.items())
    inner_digits = " + ".join([*inputs[1:], *outputs[:-1]]) or "0"  # none with one digit per axis
    return Method(
        name="tt-lora",
        title="TT-LoRA",
        source="arXiv:2408.01008",
        formula=f"ΔW[({' '.join(inputs)}), ({' '.join(outputs)})] = {product}",
        factors=tt({**cores, "G1": "kh kw i1"}),
        init={core: "zeros" if core == last_core else "orthogonal" for core in cores},
        count=f"R*(K*i1 + {outputs[-1]}) + R**2*({inner_digits})",
        folds={"in": " ".join(inputs), "out": " ".join(outputs)},
        scale="alpha",
        mechanisms=(AnyRank(), Tensorised(_tt_lora)),
    )


TT_LORA = _tt_lora({})
