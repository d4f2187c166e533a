"""What a file or a user said, short enough for an error message."""

from typing import Any

LONGEST = 80


def cut(text: str, longest: int = LONGEST) -> str:
    """Return a text, without its end if it is long.

    Args:
        text: The text.
        longest: Number of characters that it may have.

    Example:
        >>> len(cut("x" * 1000))
        80
    """
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


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
