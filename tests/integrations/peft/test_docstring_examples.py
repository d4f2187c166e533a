"""The examples in the docstrings of `metalora.peft` run, and every public name has one."""

import doctest
import inspect

import pytest

import metalora.peft as mp


@pytest.mark.parametrize("name", mp.__all__)
def test_every_public_name_has_an_example_that_runs(name):
    public = getattr(mp, name)
    module = inspect.getmodule(public)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(public), dict(vars(module)), name, None, 0)
    assert examples.examples, f"{name} has no example"
    result = doctest.DocTestRunner().run(examples)
    assert result.failed == 0
