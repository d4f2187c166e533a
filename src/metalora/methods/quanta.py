"""QuanTA (arXiv:2406.00132): a gate on every pair of digits, one pair after another, minus the gates at the start.

There are three digits per axis, as equal as possible; `config.digits` gives others, as many as one likes, such as
{"in": "16 8 8 4", "out": "16 8 8 4"}. The paper is about square weights: here the first gate on a digit maps it from
its size in `in` to its size in `out`, so nothing is padded. Gates start as kaiming of their inputs. What is learned and
saved is their change, which is zero at first; the start itself is made again from the seed, and it is never saved and
never merged into the base.
"""

from collections.abc import Mapping
from itertools import combinations

from metalora.methods.digits import digit_modes
from metalora.methods.method import Method
from metalora.methods.records import FixedBonds, GateCircuit, Tensorised

MOST_DIGITS = 6  # n digits have about n^2 modes, and the letters of an einsum are 52


def _quanta(digits: Mapping[str, int]) -> Method:
    factors, fixed_bonds = _gates(_number_of_digits(digits))
    return Method(
        name="quanta",
        title="QuanTA",
        source="arXiv:2406.00132",
        formula="ΔW = Π_{j<k} (T0 + T)^(jk) - Π_{j<k} T0^(jk)",
        factors=factors,
        init=dict.fromkeys(factors, "gate"),
        count=" + ".join(_count(spec, fixed_bonds) for spec in factors.values()),
        export="O",
        folds={
            "in": " ".join(digit_modes("i", _number_of_digits(digits))),
            "out": " ".join(digit_modes("o", _number_of_digits(digits))),
        },
        mechanisms=(GateCircuit(learns_change=True), FixedBonds(fixed_bonds), Tensorised(_quanta)),
        scale="alpha",
        notes="It has no rank: a gate is as wide as its two digits, ΔW of full rank. The paper has no scale.",
    )


def _number_of_digits(digits: Mapping[str, int]) -> int:
    counts = {*digits.values()}
    if len(counts) > 1:
        raise ValueError(
            f"method 'quanta': digits of in and out are {dict(digits)} in number, expected as many of each"
        )
    [count] = counts  # a gate maps digit k of in to digit k of out
    if not 2 <= count <= MOST_DIGITS:
        raise ValueError(f"method 'quanta': {count} digits, expected 2 to {MOST_DIGITS}")
    return count


def _gates(digits: int) -> tuple[dict[str, str], dict[str, str]]:
    """One gate on every pair of digits, {"T12": "kh kw i1 i2 b11 b21", ...}, and the bonds between the gates.

    Digit k enters the first of its gates as i<k>, goes from gate to gate as b<k>1, b<k>2, ..., and leaves the last as
    o<k>; the bonds have the size of o<k>.
    """
    open_modes = {digit: f"i{digit}" for digit in range(1, digits + 1)}
    gates_passed = dict.fromkeys(open_modes, 0)
    gates: dict[str, str] = {}
    fixed_bonds: dict[str, str] = {}
    for first, second in combinations(open_modes, 2):
        inputs = [open_modes[first], open_modes[second]]
        for digit in (first, second):
            gates_passed[digit] += 1
            if gates_passed[digit] == digits - 1:  # a digit meets every other digit once
                open_modes[digit] = f"o{digit}"
            else:
                open_modes[digit] = f"b{digit}{gates_passed[digit]}"
                fixed_bonds[open_modes[digit]] = f"o{digit}"
        outputs = [open_modes[first], open_modes[second]]
        kernel = [] if gates else ["kh", "kw"]  # the first gate sees every position of the kernel
        gates[f"T{first}{second}"] = " ".join([*kernel, *inputs, *outputs])
    return gates, fixed_bonds


def _count(spec: str, fixed_bonds: Mapping[str, str]) -> str:
    """Closed form of the numbers of one gate."""
    sizes = [fixed_bonds.get(mode, mode) for mode in spec.removeprefix("kh kw ").split()]
    kernel = ["K"] if spec.startswith("kh kw ") else []
    return "*".join([*kernel, *sizes])


QUANTA = _quanta({"in": 3, "out": 3})
