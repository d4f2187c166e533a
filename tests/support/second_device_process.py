"""A process that has the second device, in which tests run one after another."""

import importlib.util
import traceback
import warnings
from functools import cache

import pytest

from support.fresh_process import SERVER


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test of a folder whose conftest has this hook there, with its parameters and fixtures that can be sent."""
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    run_on_second_device(pyfuncitem.path, pyfuncitem.originalname, arguments)
    return True


def run_on_second_device(path, name, arguments):
    """Run a function of a file of tests in the process, and fail or skip as it does there.

    Args:
        path: The file.
        name: Name of the function.
        arguments: Its arguments by name; they can be pickled.
    """
    pipe = _process()
    pipe.send((path, name, arguments))
    outcome, text = pipe.recv()
    if outcome == "skipped":
        pytest.skip(text)
    if outcome == "failed":
        pytest.fail(text, pytrace=False)


@cache
def _process():
    """Start the process, which ends with this one, and return the pipe to it."""
    here, there = SERVER.Pipe()
    SERVER.Process(target=_serve, args=(there,), daemon=True).start()
    there.close()
    return here


def _serve(pipe):
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("error", module="metalora")
    while True:
        try:
            path, name, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(path, name, arguments))


def _outcome(path, name, arguments):
    import torch

    from support.second_device import install, why_missing

    if why_missing():
        return "skipped", why_missing()
    install()
    torch.manual_seed(0)
    try:
        getattr(_module(path), name)(**arguments)
    except pytest.skip.Exception as skip:
        return "skipped", str(skip)
    except BaseException:
        return "failed", traceback.format_exc()
    return "passed", ""


@cache
def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
