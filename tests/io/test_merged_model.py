"""The merged weights in a file are those of a plain model, and the adapted model ends as it was."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from metalora import AdapterConfig, ConditionConfig, adapter_of
from metalora.io.merged_model import save_merged
from support.adapters import assert_close, attach_random
from support.conv_net import BODY, conv_net, images


def test_the_file_makes_the_plain_model_the_adapted_one_which_stays_unmerged(tmp_path):
    base, x = conv_net(), images()
    model = copy.deepcopy(base)
    attach_random(model, AdapterConfig("lora", 2, targets=BODY, condition=ConditionConfig(scope="constant")))
    expected = model(x)
    save_merged(model, tmp_path / "merged")
    assert not adapter_of(model).merged and torch.equal(model(x), expected)
    base.load_state_dict(load_file(tmp_path / "merged"))
    assert_close(base(x), expected)


def test_a_model_without_an_adapter_has_nothing_to_merge(tmp_path):
    with pytest.raises(ValueError, match="save_merged: Sequential has no adapter"):
        save_merged(conv_net(), tmp_path / "merged")
    assert not list(tmp_path.iterdir())
