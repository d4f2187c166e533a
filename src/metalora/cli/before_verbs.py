"""Flags that stand in the place of a verb: the versions, and the completion of a shell."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import platform
from collections.abc import Callable, Sequence

import tyro

SHELLS = ("bash", "zsh", "fish")
LIBRARIES = ("torch", "timm", "transformers", "peft")
ABOUT = (
    "`{program} --version` prints the versions; `{program} --print-completion bash` (or zsh, fish) prints a script "
    "that completes verbs and flags."
)


def answer_without_verb(
    make_app: Callable[[], tyro.extras.SubcommandApp], program: str, arguments: Sequence[str]
) -> bool:
    """Answer `--version` and `--print-completion SHELL`, and say whether the arguments were one of them.

    Args:
        make_app: Gives the verbs as one program.
        program: Name of the program.
        arguments: The command line without the program.

    Raises:
        ValueError: An unknown shell, or none.
    """
    if list(arguments) == ["--version"]:
        print(version_lines(program))
        return True
    if arguments and arguments[0] == "--print-completion":
        print(completion(make_app(), program, arguments[1:]), end="")
        return True
    return False


def version_lines(program: str) -> str:
    """Return the version of the program, of Python and of the libraries whose models it adapts, one a line.

    Args:
        program: Name of the program, which is that of its package.

    Example:
        >>> version_lines("metalora").splitlines()[0].startswith("metalora ")
        True
    """
    versions = {program: _version(program), "python": platform.python_version()}
    versions |= {name: _version(name) for name in LIBRARIES}
    return "\n".join(f"{name} {version}" for name, version in versions.items())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def completion(app: tyro.extras.SubcommandApp, program: str, shells: Sequence[str]) -> str:
    """Return the script that completes a program's verbs and flags in a shell.

    Args:
        app: The verbs.
        program: Name of the program.
        shells: What the user has named; one of `SHELLS`.

    Raises:
        ValueError: None of the known shells, or several.
    """
    if len(shells) != 1 or shells[0] not in SHELLS:
        named = " ".join(shells) or "nothing"
        raise ValueError(f"--print-completion: expected one of {', '.join(SHELLS)}, found {named}")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):  # tyro ends after it has printed
        app.cli(prog=program, args=["--tyro-print-completion", shells[0]])
    return printed.getvalue()
