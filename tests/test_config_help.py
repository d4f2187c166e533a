"""`help` of a configuration has the text below each of its fields."""

import pydoc
from dataclasses import dataclass

import pytest

import metalora
from metalora.config import Configuration, TrainConfig
from support.configurations import configurations_of, fields_without_help

CONFIGURATIONS = configurations_of(metalora)


def test_there_are_configurations():
    expected = {"AdapterConfig", "ConditionConfig", "TrainConfig", "LearnerConfig", "FineTuneConfig", "ServingConfig"}
    assert expected <= {*CONFIGURATIONS}


@pytest.mark.parametrize("cls", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_help_has_a_text_for_every_field(cls):
    assert fields_without_help(cls) == []


def test_help_has_the_very_text_and_the_sentences_above_it():
    shown = " ".join(pydoc.render_doc(TrainConfig, renderer=pydoc.plaintext).replace(" |", " ").split())
    assert "How an adapter is trained with AdamW." in shown
    assert "warmup: share of the steps over which the learning rate rises, between 0 and 1 penalty: " in shown


def test_a_class_without_a_module_keeps_its_docstring():
    @dataclass(frozen=True)
    class Local(Configuration):
        """Only here."""

        size: int = 1
        """a size"""

    assert Local.__doc__ == "Only here." and Local(2).size == 2
