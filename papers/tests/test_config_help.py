"""`help` of a configuration of the papers has the text below each of its fields."""

import pytest

import metalora_papers
from support.configurations import configurations_of, fields_without_help

CONFIGURATIONS = configurations_of(metalora_papers)


@pytest.mark.parametrize("cls", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_help_has_a_text_for_every_field(cls):
    assert fields_without_help(cls) == []


def test_there_are_configurations():
    assert {"RunConfig", "TableConfig", "DemoConfig", "LearnerTableConfig"} <= {*CONFIGURATIONS}
