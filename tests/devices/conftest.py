"""The tests of this folder run in a process that has the second device, see support/second_device.py."""

from support.second_device_process import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
