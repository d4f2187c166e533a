"""What the verbs of the command line share: tables, JSON, progress, and one line for an error."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import json
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import tyro

from metalora._util.extras import missing_package_message
from metalora._util.number_range import Range
from metalora._util.progress import progress_bar

Json = Annotated[bool, tyro.conf.arg(help="print one JSON object instead of a table")]


def is_first_process() -> bool:
    """Return whether this process prints: with `accelerate launch` the first one does, otherwise the only one."""
    return int(os.environ.get("WORLD_SIZE", "1")) < 2 or os.environ.get("RANK", "0") == "0"


def print_json(value: Any) -> None:
    """Print a value as indented JSON, from the first process only.

    Raises:
        ValueError: The value holds NaN.
    """
    text = json.dumps(value, indent=1, allow_nan=False)
    if is_first_process():
        print(text)


def show(value: Any, as_json: bool, title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a result as JSON or as a table.

    Args:
        value: What is printed as JSON.
        as_json: Print JSON.
        title: Title of the table.
        columns: Names of its columns.
        rows: One mapping per line, with a value for each column.
    """
    if as_json:
        print_json(value)
        return
    if not is_first_process():
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = [escape(_cell(row[column])) for column in columns]
        table.add_row(*cells)
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def flatten(results: Mapping[str, Any], prefix: str = "") -> list[dict[str, Any]]:
    """Turn nested results into rows of a metric's dotted name and its value; lists are left out.

    Example:
        >>> flatten({"test": {"accuracy": 0.5}})
        [{'metric': 'test.accuracy', 'value': 0.5}]
    """
    rows: list[dict[str, Any]] = []
    for name, value in results.items():
        if isinstance(value, dict):
            rows += flatten(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            rows.append({"metric": prefix + name, "value": value})
    return rows


def status(label: str, quiet: bool) -> AbstractContextManager[Any]:
    """Show a spinner with a label on standard error, or nothing if `quiet`."""
    from rich.console import Console

    return Console(stderr=True).status(label) if is_first_process() and not quiet else nullcontext()


def progress(total: int, label: str, quiet: bool) -> AbstractContextManager[Callable[..., None]]:
    """Show a progress bar on standard error, from the first process only; gives `advance(done, note)`."""
    return progress_bar(total, label, hidden=quiet or not is_first_process())


def _with_checked_numbers(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a function that checks the flags of a verb that declare a range, and then gives the call to make."""
    hints = typing.get_type_hints(verb, include_extras=True)

    @functools.wraps(verb)
    def checked(*arguments: Any, **flags: Any) -> Callable[[], None]:
        bound = inspect.signature(verb).bind(*arguments, **flags).arguments
        for name, value in bound.items():
            for part in getattr(hints.get(name), "__metadata__", ()):
                if isinstance(part, Range):
                    part.check(value, f"--{name.replace('_', '-')}")
        return functools.partial(verb, *arguments, **flags)

    return checked


def _parse(app: tyro.extras.SubcommandApp, program: str, arguments: Sequence[str], about: str) -> Callable[[], None]:
    """Parse the arguments and give the call to make.

    tyro prints a value that a part of the configuration refuses in a box, under a name of its own; here it is a
    ValueError, as such a value is everywhere else.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            call: Callable[[], None] = app.cli(prog=program, args=list(arguments), description=about)
    except SystemExit as stop:
        refused = stop.__context__
        if isinstance(getattr(refused, "arg", None), str):  # the part's name; of a flag, it is the flag's definition
            raise ValueError(getattr(refused, "message", refused)) from None
        sys.stderr.write(printed.getvalue())
        raise
    return call


def run_verbs(verbs: Mapping[str, Callable[..., None]], program: str, arguments: Sequence[str], about: str) -> None:
    """Parse the arguments and call a verb.

    A ValueError is the user's mistake, a missing package is the user's to install, and a disk may be broken: each
    prints as one line, exit code 2. Ctrl-C exits with 130. If the reader of a pipe stops reading (`| head`), the
    program ends without a message, exit code 1.

    Args:
        verbs: Name -> function whose parameters are the flags.
        program: Name of the program, for usage and error lines.
        arguments: The command line without the program.
        about: One sentence for `--help`.
    """
    app, command = tyro.extras.SubcommandApp(), program.split()[0]  # lines of errors begin with one word
    for name, verb in verbs.items():
        app.command(name=name)(_with_checked_numbers(verb))
    try:
        _parse(app, program, arguments, about)()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its exit, which would print a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        print(f"{command}: {missing_package_message(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # after that of a pipe, which is one too
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"{command}: {where}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ValueError as error:
        print(f"{command}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            f"{command}: stopped; finished runs and checkpoints are kept, run the same command again to continue",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
