"""Error messages that name the nearest valid choice."""

import difflib
from collections.abc import Iterable, Sequence

from metalora._util.shown import cut, shown

MOST_LISTED = 24  # names of a message


def closest(name: str, choices: Iterable[str], *, count: int = 1, cutoff: float = 0.5) -> list[str]:
    """Return the choices that are spelt most like a name, the best one first.

    Args:
        name: What the user wrote.
        choices: The valid names.
        count: The largest number of choices to return.
        cutoff: The smallest similarity, from 0 (anything) to 1 (equal), as `difflib.SequenceMatcher.ratio` measures it.

    Example:
        >>> closest("quary", ["query", "key", "value"])
        ['query']
    """
    return difflib.get_close_matches(cut(name), list(choices), n=count, cutoff=cutoff)


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the closest choice, then all choices in order.

    Example:
        >>> nearest("lroa", ["moe-lora", "lora"])
        "; did you mean 'lora'? (known: lora, moe-lora)"
    """
    return _suggestion(name, sorted(choices), cutoff=0.5)


def check_choice(noun: str, value: str, choices: Sequence[str]) -> None:
    """Check that a value is one of the choices.

    Args:
        noun: What the value is, for the message ("split", "GLUE task").
        value: What the user wrote.
        choices: The valid values, in the order in which the message lists them.

    Raises:
        ValueError: The value is not one of the choices; the message names the closest one.

    Example:
        >>> check_choice("split", "tset", ("train", "test"))
        Traceback (most recent call last):
        ValueError: unknown split 'tset'; did you mean 'test'? (known: train, test)
    """
    if value not in choices:
        # A lower cutoff than in `nearest`, because these lists are short.
        raise ValueError(f"unknown {noun} {shown(value)}{_suggestion(value, choices, cutoff=0.3)}")


def _suggestion(name: str, choices: Sequence[str], cutoff: float) -> str:
    close = closest(name, choices, cutoff=cutoff)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    listed = ", ".join(choices[:MOST_LISTED])
    more = f" and {len(choices) - MOST_LISTED} more" if len(choices) > MOST_LISTED else ""
    return f"{hint} (known: {listed}{more})"
