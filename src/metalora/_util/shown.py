"""What a file or a user said, short enough for an error message."""

from typing import Any

LONGEST = 80


def cut(text: str) -> str:
    """Return a text, without its end if it is long.

    Example:
        >>> len(cut("x" * 1000))
        80
    """
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def shown(value: Any) -> str:
    """Return a value as an error message shows it.

    Example:
        >>> shown("lora"), len(shown([0] * 1000))
        ("'lora'", 80)
    """
    try:
        return cut(repr(value))
    except (ValueError, RecursionError):  # Python refuses to print an integer of more than 4300 digits
        return f"a {type(value).__name__} that is too long to print"
