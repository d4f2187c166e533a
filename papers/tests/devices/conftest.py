"""The tests of this folder run in a process that has the second device, see support/second_device.py."""

import pytest

from support.second_device_process import run_on_second_device


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run the function there, with its parameters and fixtures that can be sent."""
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    run_on_second_device(pyfuncitem.path, pyfuncitem.originalname, arguments)
    return True
