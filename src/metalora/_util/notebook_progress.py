"""A progress bar in a Jupyter notebook, which needs no widgets: a piece of HTML that is shown again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module

SECONDS_BETWEEN = 0.25  # two pictures of the bar


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    Example:
        >>> in_notebook()
        False
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def notebook_bar(total: int, label: str, seconds_between: float = SECONDS_BETWEEN) -> Iterator[Callable[..., None]]:
    """Show a progress bar below a cell; it stays when the work is done, and disappears at an error.

    Args:
        total: Number of steps.
        label: What is done.
        seconds_between: Least time between two pictures of the bar.

    Yields:
        A function of the number of steps that are done, and of a note behind the bar.
    """
    ipython = import_module("IPython.display")
    started = drawn = time.monotonic()
    latest = bar_as_html(label, 0, total, 0.0, "data and backbone first")
    shown = ipython.display(ipython.HTML(latest), display_id=True)

    def advance(done: int, note: str = "") -> None:
        nonlocal drawn, latest
        now = time.monotonic()
        latest = bar_as_html(label, done, total, now - started, note)
        if now - drawn >= seconds_between:
            drawn = now
            shown.update(ipython.HTML(latest))

    try:
        yield advance
    except BaseException:
        shown.update(ipython.HTML(""))  # nothing of the bar stays next to the message of the error
        raise
    shown.update(ipython.HTML(latest))


def bar_as_html(label: str, done: int, total: int, seconds: float, note: str) -> str:
    """Return a progress bar as HTML, with the time that the rest takes at the pace so far.

    Example:
        >>> bar_as_html("training", 30, 60, 90.0, "loss 0.5")
        'training <progress value="30" max="60"></progress> 30/60, 1:30 left, loss 0.5'
    """
    parts = [f"{done}/{total}"]
    if 0 < done < total:
        left = round(seconds * (total - done) / done)
        parts.append(f"{left // 60}:{left % 60:02d} left")
    if note:
        parts.append(escape(note))
    return f'{escape(label)} <progress value="{done}" max="{total}"></progress> {", ".join(parts)}'
