"""Error messages that name the nearest valid choice."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest known name, and all the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(known)})"


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """ValueError, with the nearest known name, unless `value` is one of `known`."""
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {value!r}{hint} (known: {', '.join(known)})")
