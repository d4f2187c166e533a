"""The command lines in-process."""

import contextlib
import importlib
import io
import sys

import pytest


def run_command(program, module, *arguments):
    """(exit code, stdout, stderr) of `PROGRAM ARGUMENTS`, whose `main` is in `module`."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.setenv("COLUMNS", "240")
        try:
            importlib.import_module(module).main()
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


def metalora_command(*arguments):
    """(exit code, stdout, stderr) of `metalora ARGUMENTS`."""
    return run_command("metalora", "metalora.cli.main", *arguments)


def papers_command(*arguments):
    """(exit code, stdout, stderr) of `metalora-papers ARGUMENTS`."""
    return run_command("metalora-papers", "metalora_papers.cli", *arguments)
