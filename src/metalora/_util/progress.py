"""A progress bar on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(total: int, label: str, hidden: bool = False) -> Iterator[Callable[..., None]]:
    """Show a progress bar on standard error, or below the cell of a notebook.

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

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    note_column, console = TextColumn("{task.fields[note]}"), Console(stderr=True)
    with Progress(*columns, note_column, console=console, disable=hidden) as bar:
        task = bar.add_task(label, total=total, note="data and backbone first")
        try:
            yield lambda done, note="": bar.update(task, completed=done, note=note)
        except BaseException:
            bar.live.transient = True  # nothing of the bar stays next to the message of the error
            raise
