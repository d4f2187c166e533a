"""Run the examples in the docstrings of a module."""

import doctest
import linecache
from importlib import import_module


def run_examples(module):
    """Fail unless a module, given by its name, has examples that print what they say."""
    linecache.clearcache()  # doctest asks the file system for each of the cached files again, at every docstring
    result = doctest.testmod(import_module(module))
    assert result.attempted and not result.failed
