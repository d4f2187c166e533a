"""Formats: ways of joining factors by bonds, given the modes of each factor. All return spec strings.

Each function takes the factors' own modes, either as a mapping from factor names to modes ({"A": "in", "B": "out"}) or
as one string with a mode for each factor ("in layer out"), whose factors are named G1, G2, ...
"""

from collections.abc import Mapping


def matrix(left: str = "in", right: str = "out") -> dict[str, str]:
    """Return the specs of a product of two matrices, A B, as in LoRA.

    Args:
        left: The modes of A.
        right: The modes of B.

    Example:
        >>> matrix()
        {'A': 'in r', 'B': 'r out'}
    """
    return {"A": _spec(left, "r"), "B": _spec("r", right)}


def cp(factors: Mapping[str, str] | str) -> dict[str, str]:
    """Return the specs of a canonical polyadic format: all factors share the bond r, sum_r prod_n G_n[i_n, r].

    Args:
        factors: The modes of every factor.

    Example:
        >>> cp("in layer out")
        {'G1': 'in r', 'G2': 'layer r', 'G3': 'out r'}
    """
    return {name: _spec(modes, "r") for name, modes in _named(factors).items()}


def tucker(factors: Mapping[str, str] | str) -> dict[str, str]:
    """Return the specs of a Tucker format: each factor has a bond of its own to a core.

    Args:
        factors: The modes of every factor but the core.

    Example:
        >>> tucker("in layer out")
        {'G1': 'in r1', 'G2': 'layer r2', 'G3': 'out r3', 'core': 'r1 r2 r3'}
    """
    specs: dict[str, str] = {}
    bonds: list[str] = []
    for number, (name, modes) in enumerate(_named(factors).items(), start=1):
        bonds.append(f"r{number}")
        specs[name] = _spec(modes, bonds[-1])
    return specs | {"core": _spec(*bonds)}


def tt(factors: Mapping[str, str] | str) -> dict[str, str]:
    """Return the specs of a tensor train: a chain of factors, neighbours joined by a bond.

    Args:
        factors: The modes of every factor, in the order of the chain.

    Example:
        >>> tt("in layer out")
        {'G1': 'in r1', 'G2': 'r1 layer r2', 'G3': 'r2 out'}
    """
    modes_by_factor = _named(factors)
    specs: dict[str, str] = {}
    for position, (name, modes) in enumerate(modes_by_factor.items()):
        # the two ends of a train have one bond
        left = f"r{position}" if position > 0 else ""
        right = f"r{position + 1}" if position < len(modes_by_factor) - 1 else ""
        specs[name] = _spec(left, modes, right)
    return specs


def ring(factors: Mapping[str, str] | str) -> dict[str, str]:
    """Return the specs of a tensor ring: a chain whose last factor is joined to the first one.

    Args:
        factors: The modes of every factor, in the order of the ring.

    Example:
        >>> ring({"A": "in", "B": "out", "C": ""})
        {'A': 'r0 in r1', 'B': 'r1 out r2', 'C': 'r2 r0'}
    """
    modes_by_factor = _named(factors)
    return {
        name: _spec(f"r{position}", modes, f"r{(position + 1) % len(modes_by_factor)}")
        for position, (name, modes) in enumerate(modes_by_factor.items())
    }


def _named(factors: Mapping[str, str] | str) -> dict[str, str]:
    if isinstance(factors, str):
        return {f"G{number}": mode for number, mode in enumerate(factors.split(), start=1)}
    return dict(factors)


def _spec(*modes: str) -> str:
    """Join modes by blanks; empty strings are left out."""
    return " ".join(mode for mode in modes if mode)
