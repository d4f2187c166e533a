"""A progress bar on standard error; in a file or a pipe, a line every ten seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 10.0  # between two lines where there is no terminal


@contextmanager
def progress_bar(total: int, label: str, hidden: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error or below the cell of a notebook; in a log, print a line every ten seconds.

    Args:
        total: Number of steps.
        label: What is done.
        hidden: Show nothing.

    Yields:
        A function of the number of steps that are done, and of a note behind the bar.

    Example:
        >>> with progress_bar(3, "training", hidden=True) as advance:
        ...     advance(1, "loss 0.5")
    """
    from metalora._util.notebook_progress import in_notebook, notebook_bar

    if not hidden and in_notebook():
        with notebook_bar(total, label) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not hidden and not shows_bars(console.is_terminal, console.is_dumb_terminal, console.is_jupyter):
        yield progress_lines(total, label)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console, disable=hidden) as bar:
        task = bar.add_task(label, total=total, note="data and backbone first")
        try:
            yield lambda done, note="": bar.update(task, completed=done, note=note)
        except BaseException:
            bar.live.transient = True  # nothing of the bar stays next to the message of the error
            raise


def shows_bars(is_terminal: bool, is_dumb: bool, is_notebook: bool) -> bool:
    """Return whether a line can be drawn over again: on a terminal that is not dumb, and in a notebook.

    Example:
        >>> shows_bars(is_terminal=True, is_dumb=True, is_notebook=False)
        False
    """
    return is_notebook or (is_terminal and not is_dumb)


def progress_lines(total: int, label: str, seconds: float = LINE_SECONDS) -> Callable[..., None]:
    """Return a function that prints how far the work is, at most one line in ten seconds and one at the end.

    Args:
        total: Number of steps.
        label: What is done.
        seconds: Least time between two lines.

    Returns:
        A function of the number of steps that are done, and of a note.
    """
    started = printed = time.monotonic()

    def advance(done: int, note: str = "") -> None:
        nonlocal printed
        now = time.monotonic()
        if now - printed < seconds and done < total:
            return
        printed = now
        line = f"{label}: {done} of {total}, {now - started:.0f} s"
        print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)

    return advance
