"""Formats: ways of wiring factors, given each factor's own modes. All return spec strings."""

from collections.abc import Mapping


def _named(factors: Mapping[str, str] | str) -> dict[str, str]:
    if isinstance(factors, str):
        return {f"G{k}": mode for k, mode in enumerate(factors.split(), start=1)}
    return dict(factors)


def _join(*modes: str) -> str:
    return " ".join(mode for mode in modes if mode)


def matrix(left: str = "in", right: str = "out") -> dict[str, str]:
    """A B: {"A": "in r", "B": "r out"}."""
    return {"A": _join(left, "r"), "B": _join("r", right)}


def cp(factors: Mapping[str, str] | str) -> dict[str, str]:
    """Every factor ends in the one bond r: sum_r prod_n G_n[i_n, r] (canonical polyadic)."""
    return {name: _join(own, "r") for name, own in _named(factors).items()}


def tucker(factors: Mapping[str, str] | str) -> dict[str, str]:
    """A factor per mode, each with a bond of its own into the core: {"G1": "in r1", ..., "core": "r1 r2 ..."}."""
    named = _named(factors)
    bonds = [f"r{k}" for k in range(1, len(named) + 1)]
    wired = {name: _join(own, bond) for (name, own), bond in zip(named.items(), bonds, strict=True)}
    return wired | {"core": " ".join(bonds)}


def tt(factors: Mapping[str, str] | str) -> dict[str, str]:
    """A chain: tt("in layer out") is {"G1": "in r1", "G2": "r1 layer r2", "G3": "r2 out"} (tensor train)."""
    named = _named(factors)
    last = len(named) - 1
    return {
        name: _join(f"r{k}" if k else "", own, f"r{k + 1}" if k < last else "")
        for k, (name, own) in enumerate(named.items())
    }


def ring(factors: Mapping[str, str] | str) -> dict[str, str]:
    """A closed chain: ring({"A": "in", "B": "out", "C": ""}) is A "r0 in r1", B "r1 out r2", C "r2 r0"."""
    named = _named(factors)
    n = len(named)
    return {name: _join(f"r{k}", own, f"r{(k + 1) % n}") for k, (name, own) in enumerate(named.items())}
