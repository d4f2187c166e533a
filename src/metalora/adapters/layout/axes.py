"""The axes of a weight as a network spans them: as they are, cut into heads, or folded into digits."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from metalora.adapters.targets import Target
from metalora.config import AdapterConfig
from metalora.methods.records import NonlinearBottleneck
from metalora.methods.resolve import ResolvedMethod
from metalora.tensornet.spec import Modes


def network_axes(target: Target, resolved: ResolvedMethod) -> dict[str, int]:
    """Sizes of the axes that the network spans: those of the weight; a bottleneck is between output and output.

    Example:
        >>> from metalora import AdapterConfig
        >>> from metalora.methods.resolve import resolve
        >>> network_axes(Target("fc", "linear", {"in": 8, "out": 16}), resolve(AdapterConfig("lora")))
        {'in': 8, 'out': 16}
    """
    bottleneck = resolved.method.record(NonlinearBottleneck)
    if bottleneck is None:
        return dict(target.sizes)
    width = target.sizes["out"]  # it stands behind the layer, so the width of the layer's input plays no part
    return {"in": width, "out": width, "hidden": _hidden_width(bottleneck, resolved.config)}


def _hidden_width(bottleneck: NonlinearBottleneck, config: AdapterConfig) -> int:
    """The product of the configured digits, or the method's own width; `fold_axes` reports digits that are wrong."""
    first_choice, _, _ = config.digits.get("hidden", "").partition(",")
    digits = first_choice.split()
    if digits and all(digit.isdecimal() for digit in digits):
        return prod(int(digit) for digit in digits)
    return bottleneck.hidden


def fold_axes(
    target: Target, sizes: Mapping[str, int], resolved: ResolvedMethod
) -> tuple[dict[str, int], dict[str, Modes]]:
    """Replace every axis that the method folds by the modes that it is folded into.

    Args:
        target: The target, for its head size and for error messages.
        sizes: Sizes of the axes.
        resolved: The method.

    Returns:
        The sizes of the target's modes, and axis -> the modes that it is folded into.

    Raises:
        ValueError: An unknown head size, a width that is not a multiple of it, or digits that do not make the width.
    """
    folded, folds = dict(sizes), dict(resolved.method.network.folds)
    for axis, modes in folds.items():
        width = folded.pop(axis)
        if "head" in modes:
            head_size = _head_size(target, axis, width, resolved)
            folded["head"] = width // head_size
            folded["hdim"] = head_size
        else:
            prefix = f"target {target.path!r}, digits of {axis!r}"
            sizes_of_digits = digits_of(width, len(modes), resolved.config.digits.get(axis, ""), prefix)
            folded.update(zip(modes, sizes_of_digits, strict=True))
    return folded, folds


def _head_size(target: Target, axis: str, width: int, resolved: ResolvedMethod) -> int:
    size = resolved.config.head_dim or target.head_dim
    if size is None:
        raise ValueError(
            f"target {target.path!r}: method {resolved.name!r} has heads, and the model does not say how large they "
            "are: set head_dim"
        )
    if width % size:
        raise ValueError(f"target {target.path!r}: its {width} {axis}puts are not heads of {size}")
    return size


def digits_of(width: int, count: int, choices: str = "", prefix: str = "digits") -> list[int]:
    """Factor a width into digits, big-endian.

    Args:
        width: The size of the axis.
        count: Number of digits.
        choices: Digits for some widths, such as "64 4 3, 16 16 12"; those that make the width are used. Otherwise the
            digits are nearly equal: each in turn is the largest divisor not above the root of what is left.
        prefix: Prefix of the error messages.

    Raises:
        ValueError: `choices` is not a list of whole numbers, or has another number of digits for the width.

    Example:
        >>> digits_of(768, 3)
        [8, 8, 12]
        >>> digits_of(768, 3, "64 4 3, 16 16 12")
        [64, 4, 3]
    """
    for choice in filter(None, choices.split(",")):
        digits = _parsed_digits(choice, choices, prefix)
        if prod(digits) == width:  # choices for other widths of the model are passed over
            if len(digits) != count:
                raise ValueError(f"{prefix}: {choice.strip()!r} has {len(digits)} digits, expected {count}")
            return digits
    return _nearly_equal_digits(width, count)


def _parsed_digits(choice: str, choices: str, prefix: str) -> list[int]:
    words = choice.split()
    if not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(f"{prefix}: {choices!r} is not a list of whole numbers, such as '64 4 3, 16 16 12'")
    return [int(word) for word in words]


def _nearly_equal_digits(width: int, count: int) -> list[int]:
    digits = []
    for remaining in range(count, 1, -1):
        divisors = (divisor for divisor in range(width, 0, -1) if width % divisor == 0)
        digit = next(divisor for divisor in divisors if divisor**remaining <= width)  # in integers: exact
        digits.append(digit)
        width //= digit
    return [*digits, width]
