"""Spec strings: a factor is written as its modes, separated by blanks, such as "in kh kw r".

A mode that is not known here is a bond: it is summed over, so at least two factors must have it.
"""

import re
from collections.abc import Mapping

KERNEL_MODES = ("kh", "kw")
INPUT_MODES = ("in", *KERNEL_MODES)
OUTPUT_MODES = ("out",)
SIDES = {"input": "in", "output": "out"}  # of a weight, and its axes
COORDINATE_MODES = ("layer", "proj", "head", "task")
# "expert" is mixed by a gate; "batch" is the leading axis of generated factors, and never written
KNOWN_MODES = (*INPUT_MODES, *OUTPUT_MODES, *COORDINATE_MODES, "expert", "batch")

Modes = tuple[str, ...]


def parse_factor(name: str, spec: str) -> Modes:
    """Parse the modes of one factor.

    Args:
        name: The factor's name, for error messages.
        spec: Its modes, separated by blanks.

    Returns:
        The modes, in the order of the factor's axes.

    Raises:
        ValueError: A mode is ill-formed, occurs twice, or is "batch".

    Example:
        >>> parse_factor("A", "in kh kw r")
        ('in', 'kh', 'kw', 'r')
    """
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
    """Parse which modes an axis of the weight, or the hidden axis of a bottleneck, is split into.

    Args:
        folds: Axis ("in", "out" or "hidden") -> its modes, the slowest first.

    Raises:
        ValueError: Another axis, or an ill-formed mode.

    Example:
        >>> parse_folds({"out": "head hdim"})
        {'out': ('head', 'hdim')}
    """
    for axis in folds:
        if axis not in ("in", "out", "hidden"):
            raise ValueError(f"fold of {axis!r} ({folds[axis]!r}): only 'in', 'out' and 'hidden' are folded")
    return {axis: parse_factor(f"fold of {axis}", spec) for axis, spec in folds.items()}


def parse_factors(
    specs: Mapping[str, str], folds: Mapping[str, Modes], sides: Mapping[str, str] = SIDES
) -> dict[str, Modes]:
    """Parse all factors of a network.

    Args:
        specs: Factor -> its modes, separated by blanks.
        folds: Axis -> the modes that it is split into; these are known modes too.
        sides: Side -> the axis of which some factor must have the modes.

    Raises:
        ValueError: A mode is ill-formed, a bond occurs in one factor only, or no factor has the modes of the input or
            of the output side.

    Example:
        >>> parse_factors({"A": "in r", "B": "r out"}, {})
        {'A': ('in', 'r'), 'B': ('r', 'out')}
    """
    factors = {name: parse_factor(name, spec) for name, spec in specs.items()}
    known_modes = (*KNOWN_MODES, *(mode for modes in folds.values() for mode in modes))
    for name, modes in factors.items():
        for mode in modes:
            # a bond that one factor alone has would be summed before anything is multiplied
            occurrences = sum(mode in other_modes for other_modes in factors.values())
            if mode not in known_modes and occurrences < 2:
                raise ValueError(
                    f"factor {name!r} ({specs[name]!r}): {mode!r} occurs in no other factor, so it is not a bond, "
                    f"and it is not a known mode either (known: {', '.join(known_modes)})"
                )
    for side, axis in sides.items():
        for mode in folds.get(axis, (axis,)):  # a folded axis is replaced by its digits or heads
            if not any(mode in modes for modes in factors.values()):
                raise ValueError(f"network {dict(specs)}: no factor has the {side} mode {mode!r}")
    return factors
