"""QuanTA (arXiv:2406.00132): a gate on every pair of digits, one pair after another, less the gates at the start.

Three digits an axis, as equal as they can be; config.digits gives others, as many as one likes ({"in": "16 8 8 4",
"out": "16 8 8 4"}). The paper is about square weights: here the first gate on a digit takes it from its size in `in` to
its size in `out`, so nothing is padded. Gates start as kaiming of what they take. What is learned and saved is their
change, zero at first; where they started is made anew from the seed, never saved and never merged into the base.
"""

from collections.abc import Mapping
from itertools import combinations

from metalora.methods.method import Method
from metalora.methods.records import FixedBonds, GateCircuit, Tensorised

MOST = 6  # digits: of n, n^2 modes are told apart by letters


def _quanta(digits: Mapping[str, int]) -> Method:
    counts = {*digits.values()}
    if len(counts) > 1:
        raise ValueError(
            f"method 'quanta': digits of in and out are {dict(digits)} in number, expected as many of each"
        )
    n = counts.pop()
    if not 2 <= n <= MOST:
        raise ValueError(f"method 'quanta': {n} digits, expected 2 to {MOST}")
    place = {k: f"i{k}" for k in range(1, n + 1)}
    touched, left = dict.fromkeys(place, 0), dict.fromkeys(place, n - 1)
    factors, fixed_bonds, count = {}, {}, []
    for j, k in combinations(place, 2):
        taken, given = [], []
        for digit in (j, k):
            touched[digit] += 1
            taken.append(place[digit])
            place[digit] = f"o{digit}" if touched[digit] == left[digit] else f"b{digit}{touched[digit]}"
            given.append(place[digit])
            if place[digit].startswith("b"):
                fixed_bonds[place[digit]] = f"o{digit}"
        kernel = "" if factors else "kh kw "
        factors[f"T{j}{k}"] = kernel + " ".join(taken + given)
        count.append("*".join((["K"] if kernel else []) + [fixed_bonds.get(mode, mode) for mode in taken + given]))
    return Method(
        name="quanta",
        title="QuanTA",
        source="arXiv:2406.00132",
        formula="ΔW = Π_{j<k} (T0 + T)^(jk) - Π_{j<k} T0^(jk)",
        factors=factors,
        init=dict.fromkeys(factors, "gate"),
        count=" + ".join(count),
        export="O",
        folds={"in": " ".join(f"i{k}" for k in place), "out": " ".join(f"o{k}" for k in place)},
        mechanisms=(GateCircuit(learns_change=True), FixedBonds(fixed_bonds), Tensorised(_quanta)),
        scale="alpha",
        notes="It has no rank: a gate is as wide as its two digits, ΔW of full rank. The paper has no scale.",
    )


QUANTA = _quanta({"in": 3, "out": 3})
