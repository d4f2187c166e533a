"""The axes of a weight as a network spans them: whole, cut into heads, or folded into digits."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from metalora.adapters.targets import Target
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.tensornet.spec import Modes


def axes_of(target: Target, config: AdapterConfig, method: Method) -> dict[str, int]:
    """The sizes of the axes that the network spans: the weight's, or a bottleneck's, which takes and gives outputs."""
    if method.form != "bottleneck":
        return dict(target.sizes)
    given = config.digits.get("hidden", "").split(",")[0].split()
    hidden = prod(map(int, given)) if given and all(map(str.isdecimal, given)) else method.hidden
    return {"in": target.sizes["out"], "out": target.sizes["out"], "hidden": hidden}


def folded(
    target: Target, sizes: Mapping[str, int], config: AdapterConfig, method: Method
) -> tuple[dict[str, int], dict[str, Modes]]:
    """The sizes of the target's modes with its axes folded, and the folds."""
    sizes, folds = dict(sizes), method.network.folds
    for axis, modes in folds.items():
        width = sizes.pop(axis)
        if "head" in modes:
            size = _head_size(target, axis, width, config, method)
            sizes |= {"head": width // size, "hdim": size}
        else:
            where = f"target {target.path!r}, digits of {axis!r}"
            sizes |= zip(modes, digits(width, len(modes), config.digits.get(axis, ""), where), strict=True)
    return sizes, folds


def _head_size(target: Target, axis: str, width: int, config: AdapterConfig, method: Method) -> int:
    size = config.head_dim or target.head_dim
    if size is None:
        raise ValueError(
            f"target {target.path!r}: method {method.name!r} has heads, and the model does not say how large they "
            "are: set head_dim"
        )
    if width % size:
        raise ValueError(f"target {target.path!r}: its {width} {axis}puts are not heads of {size}")
    return size


def digits(width: int, n: int, given: str = "", where: str = "digits") -> list[int]:
    """n factors of a width, big-endian: those of `given` ("64 4 3, 16 16 12") that make it, else nearly equal ones.

    Nearly equal: each in turn the largest divisor not above the root of what is left. ValueError: `given` is no list
    of whole numbers, or has another count of digits for the width.
    """
    for word in filter(None, given.split(",")):
        if not all(one.isdecimal() and int(one) for one in word.split()):
            raise ValueError(f"{where}: {given!r} is not a list of whole numbers, such as '64 4 3, 16 16 12'")
        found = [int(one) for one in word.split()]
        if prod(found) == width:
            if len(found) != n:
                raise ValueError(f"{where}: {word.strip()!r} has {len(found)} digits, expected {n}")
            return found
    found = []
    for k in range(n, 1, -1):
        found.append(next(d for d in range(width, 0, -1) if width % d == 0 and d**k <= width))
        width //= found[-1]
    return [*found, width]
