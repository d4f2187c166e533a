"""A folder that an earlier version wrote still loads, through PEFT and through `metalora.peft.load`."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import metalora.peft as mp
from support.stored_adapters import deltas_of_tasks, small_bert

SINCE = {"weights", "rest", "left_out"}  # fields of the base that the stored folder does not have
FOLDER = Path(__file__).parent / "data" / "metatt-two-tasks"


@pytest.mark.parametrize("load", [mp.load, PeftModel.from_pretrained], ids=["metalora", "peft"])
def test_a_stored_folder_has_the_same_delta(load):
    adapter = mp.adapter_of(load(small_bert(), FOLDER))
    expected = load_file(FOLDER / "deltas.safetensors")
    deltas = deltas_of_tasks(adapter)
    assert deltas.keys() == expected.keys()
    for key, delta in deltas.items():
        assert expected[key].abs().max() > 1e-2
        torch.testing.assert_close(delta, expected[key], rtol=0, atol=1e-6)


def test_a_stored_folder_is_written_again_with_the_same_names_and_fields(tmp_path):
    mp.load(small_bert(), FOLDER).save_pretrained(tmp_path)
    new_tensors = load_file(tmp_path / "adapter_model.safetensors")
    old_tensors = load_file(FOLDER / "adapter_model.safetensors")
    assert new_tensors.keys() == old_tensors.keys()
    assert all(torch.equal(new_tensors[key], value) for key, value in old_tensors.items())
    new_config, old_config = (json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path, FOLDER))
    for config in (new_config, old_config):
        config.pop("peft_version")
        config["target_modules"].sort()  # PEFT writes a set, in any order
    placement = new_config["placement"]
    assert set(placement) - set(old_config["placement"]) == {"digest"}
    assert set(placement["base"]) - set(old_config["placement"]["base"]) == SINCE
    del placement["digest"]
    for field in SINCE:
        del placement["base"][field]
    assert new_config == old_config


def test_a_stored_folder_is_compared_by_the_rule_of_its_time():
    """It says nothing of a bias, so that any is taken; a sampled number of an adapted weight is compared."""
    target = "encoder.layer.0.attention.self.query"
    biased, changed = small_bert(), small_bert()
    biased.get_submodule(target).bias.data.add_(1)
    mp.load(biased, FOLDER)
    changed.get_submodule(target).weight.data[0, 0] += 1
    with pytest.raises(ValueError, match="fingerprints differ"):
        mp.load(changed, FOLDER)
