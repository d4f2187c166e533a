"""Adapter files that an earlier version wrote still load, with the same Delta W."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metalora import load, save
from metalora.io.adapter_file import read
from support.stored_adapters import ADAPTER_FILES, deltas_of

DATA = Path(__file__).parent / "data"
SINCE = {"weights", "rest", "left_out", "extractor"}  # fields of "base" that the stored files do not have


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_stored_file_has_the_same_delta(name):
    make_base, config = ADAPTER_FILES[name]
    adapter = load(make_base(), DATA / f"{name}.adapter")
    assert adapter.method.name == config.method
    expected = load_file(DATA / f"{name}.deltas")
    deltas = deltas_of(adapter)
    assert deltas.keys() == expected.keys()
    for path, delta in deltas.items():
        assert expected[path].abs().max() > 1e-2
        torch.testing.assert_close(delta, expected[path], rtol=1e-4, atol=1e-5)  # machines round differently


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_stored_file_is_written_again_with_the_same_names_and_fields(name, tmp_path):
    make_base, _ = ADAPTER_FILES[name]
    model = make_base()
    load(model, DATA / f"{name}.adapter")
    save(model, tmp_path / "again")
    old_description, old_tensors = read(DATA / f"{name}.adapter")
    new_description, new_tensors = read(tmp_path / "again")
    assert new_tensors.keys() == old_tensors.keys()
    assert all(torch.equal(new_tensors[key], value) for key, value in old_tensors.items())
    assert set(new_description["base"]) - set(old_description["base"]) == SINCE
    for field in SINCE:
        del new_description["base"][field]
    del new_description["sha256"], old_description["sha256"], new_description["digest"]
    assert new_description == old_description


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_a_stored_file_is_compared_by_the_rule_of_its_time(name):
    """It says nothing of a bias, so that any is taken; a sampled number of an adapted weight is compared."""
    make_base, _ = ADAPTER_FILES[name]
    model = make_base()
    biased, targets = make_base(), list(load(model, DATA / f"{name}.adapter").targets)
    biased.get_submodule(targets[0]).bias.data.add_(1)
    load(biased, DATA / f"{name}.adapter")
    changed = make_base()
    changed.get_submodule(targets[0]).weight.data.flatten()[0] += 1
    with pytest.raises(ValueError, match="fingerprints differ"):
        load(changed, DATA / f"{name}.adapter")
