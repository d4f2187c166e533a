"""Spec strings: a factor is named modes separated by blanks, such as "in kh kw r"."""

import re
from collections.abc import Mapping

KERNEL_MODES = ("kh", "kw")
INPUT_MODES = ("in", *KERNEL_MODES)
OUTPUT_MODES = ("out",)
COORDINATE_MODES = ("layer", "proj", "head", "task")
KNOWN_MODES = (*INPUT_MODES, *OUTPUT_MODES, *COORDINATE_MODES, "expert", "batch")

Modes = tuple[str, ...]


def parse_factor(name: str, spec: str) -> Modes:
    """The modes of one factor; ValueError for an ill-formed, repeated or reserved mode."""
    modes = tuple(spec.split())
    for mode in modes:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", mode):
            raise ValueError(f"factor {name!r} ({spec!r}): {mode!r} is not a mode name (lower-case letters and digits)")
        if modes.count(mode) > 1:
            raise ValueError(f"factor {name!r} ({spec!r}): mode {mode!r} occurs twice")
    if "batch" in modes:
        raise ValueError(f"factor {name!r} ({spec!r}): 'batch' is carried by generated factors and is never written")
    return modes


def parse_folds(folds: Mapping[str, str]) -> dict[str, Modes]:
    """{"out": "head hdim"}: the modes, slowest first, that an axis of the weight, or what is hidden, is cut into."""
    for axis in folds:
        if axis not in ("in", "out", "hidden"):
            raise ValueError(f"fold of {axis!r} ({folds[axis]!r}): only 'in', 'out' and 'hidden' are folded")
    return {axis: parse_factor(f"fold of {axis}", spec) for axis, spec in folds.items()}


def parse_factors(specs: Mapping[str, str], folds: Mapping[str, Modes]) -> dict[str, Modes]:
    """All factors of a network; a mode that is not known is a bond and must occur in two factors or more."""
    factors = {name: parse_factor(name, spec) for name, spec in specs.items()}
    known = (*KNOWN_MODES, *(mode for modes in folds.values() for mode in modes))
    for name, modes in factors.items():
        for mode in modes:
            shared = sum(mode in other for other in factors.values())
            if mode not in known and shared < 2:
                raise ValueError(
                    f"factor {name!r} ({specs[name]!r}): {mode!r} occurs in no other factor, so it is not a bond, "
                    f"and it is not a known mode either (known: {', '.join(known)})"
                )
    for side, axis in (("input", "in"), ("output", "out")):
        for mode in folds.get(axis, (axis,)):
            if not any(mode in term for term in factors.values()):
                raise ValueError(f"network {dict(specs)}: no factor has the {side} mode {mode!r}")
    return factors
