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

from metalora._util.common_error import CommonError
from metalora._util.number_range import Range
from metalora._util.progress import progress_bar, shows_bars
from metalora._util.shown import shown
from metalora._util.suggest import check_choice
from metalora.cli.before_verbs import ABOUT, answer_without_verb
from metalora.cli.failures import exit_code, failure_line, wants_traceback
from metalora.cli.settings_file import defaults_of, with_defaults
from metalora.cli.table_output import print_cells
from metalora.cli.usage import usage_line
from metalora.executors.config import ExecutorConfig

HELP = ("-h", "--help")
Json = Annotated[bool, tyro.conf.arg(help="print one JSON object instead of a table")]

ExecutedBy = Annotated[ExecutorConfig, tyro.conf.arg(name="")]
Overwrite = Annotated[bool, tyro.conf.arg(help="replace the file if it exists; without it nothing is replaced")]


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
        title: Title of the table, which is a comment where there is no terminal.
        columns: Names of its columns.
        rows: One mapping per line, with a value for each column.
    """
    if as_json:
        print_json(value)
        return
    if not is_first_process():
        return
    from rich.console import Console

    cells = [[_cell(row[column]) for column in columns] for row in rows]
    print_cells(Console(), title, columns, cells)


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
    """Show a spinner with a label on standard error; nothing if `quiet`, or where nothing can be drawn."""
    from rich.console import Console

    console = Console(stderr=True)
    is_shown = shows_bars(console.is_terminal, console.is_dumb_terminal, console.is_jupyter)
    return console.status(label) if is_shown and is_first_process() and not quiet else nullcontext()


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


def _parse(verb: Callable[..., None], command: str, arguments: Sequence[str]) -> Callable[[], None]:
    """Parse the arguments of a verb and give the call to make.

    tyro prints a mistake in a box; here it is a ValueError, as every other mistake is.
    """
    checked = with_defaults(_with_checked_numbers(verb), defaults_of(verb, arguments))
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            call: Callable[[], None] = tyro.cli(checked, prog=command, args=list(arguments))
    except SystemExit as stop:
        refused = stop.__context__
        if isinstance(getattr(refused, "arg", None), str):  # the part's name; of a flag, it is the flag's definition
            raise ValueError(getattr(refused, "message", refused)) from None
        if not stop.code:  # after the help text
            raise
        raise ValueError(usage_line(printed.getvalue(), command, arguments)) from None
    return call


def _check_verb(arguments: Sequence[str], verbs: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the first argument is a verb, or asks for help."""
    if not arguments:
        raise ValueError(f"a command is missing: one of {', '.join(verbs)}")
    if not arguments[0].startswith("-"):
        check_choice("command", arguments[0], tuple(verbs))
    elif arguments[0] not in HELP:
        raise ValueError(f"unexpected {shown(arguments[0])} before the command: one of {', '.join(verbs)}")


def _call(verbs: Mapping[str, Callable[..., None]], program: str, arguments: Sequence[str], about: str) -> None:
    """Call the verb that the arguments name, or print the help of all."""
    if arguments[0] in verbs:
        _parse(verbs[arguments[0]], f"{program} {arguments[0]}", arguments[1:])()
    else:
        _app_of(verbs).cli(prog=program, args=list(arguments), description=about)


def _app_of(verbs: Mapping[str, Callable[..., None]]) -> tyro.extras.SubcommandApp:
    """Return all verbs as one program. Their parsers take time, so that a verb is parsed without the others."""
    app = tyro.extras.SubcommandApp()
    for name, verb in verbs.items():
        app.command(name=name)(verb)
    return app


def run_verbs(verbs: Mapping[str, Callable[..., None]], program: str, arguments: Sequence[str], about: str) -> None:
    """Parse the arguments and call a verb.

    Every error prints as one line: exit code 2 for a mistake of the user or a missing package, 1 for what failed in a
    right command (`metalora.cli.failures`). An error that several processes raise at once prints once. Ctrl-C exits
    with 130. If the reader of a pipe stops reading (`| head`), the program ends without a message, exit code 1.

    Args:
        verbs: Name -> function whose parameters are the flags.
        program: Name of the program, for usage and error lines.
        arguments: The command line without the program.
        about: One sentence for `--help`.
    """
    command = program.split()[0]  # lines of errors begin with one word
    try:
        if not answer_without_verb(functools.partial(_app_of, verbs), program, arguments):
            _check_verb(arguments, verbs)
            _call(verbs, program, arguments, f"{about} {ABOUT.format(program=program)}")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at its exit, which would print a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except Exception as error:  # whatever it is, the user gets one line
        if wants_traceback():
            raise
        if is_first_process() or not isinstance(error, CommonError):
            print(f"{command}: {failure_line(error)}", file=sys.stderr)
        raise SystemExit(exit_code(error)) from None
    except KeyboardInterrupt:
        if is_first_process():
            print(
                f"{command}: stopped; finished runs and checkpoints are kept, run the same command again to continue",
                file=sys.stderr,
            )
        raise SystemExit(130) from None
