"""Names of the digits that an axis of the weight is folded into."""


def digit_modes(letter: str, count: int) -> list[str]:
    """The modes of the digits of an axis, slowest first.

    Example:
        >>> digit_modes("i", 3)
        ['i1', 'i2', 'i3']
    """
    return [f"{letter}{place}" for place in range(1, count + 1)]
