"""Law 3: merging gives the adapted forward, and unmerging restores the weights bit for bit."""

import pytest
import torch

from metalora import merge, unmerge
from support.adapters import assert_close
from support.cases import SIZES, attach_case, inputs_of_size
from support.laws import EVERY_DELTA, GENERATED, WITHOUT_PAIR
from support.layers import LAYERS


@EVERY_DELTA
def test_3_merge_is_forward_and_unmerge_restores_the_bits(case, layer):
    model, adapter, _, condition = attach_case(case, layer)
    snapshot = {"condition": condition["condition"].mean()} if condition else {}
    weight = model[0].base.weight.clone()
    inputs, before = {}, {}
    for size in SIZES:
        inputs[size] = inputs_of_size(adapter, layer, size)
        before[size] = model(inputs[size], **snapshot)
    if model[0].bound.bias_factors and model[0].base.bias is None:
        with pytest.raises(ValueError, match="target '0' has no bias that .* could be added to"):
            merge(model, **snapshot)
        assert torch.equal(model[0].base.weight, weight)
        return
    merge(model, **snapshot)
    for size in SIZES:
        assert_close(model(inputs[size]), before[size], name=size)
    assert not torch.equal(model[0].base.weight, weight)
    unmerge(model)
    assert torch.equal(model[0].base.weight, weight)
    assert torch.equal(model(inputs[size], **snapshot), before[size])


@pytest.mark.parametrize("case", WITHOUT_PAIR.values(), ids=WITHOUT_PAIR)
def test_3_what_is_no_delta_or_no_lora_says_so(case, tmp_path):
    model, adapter, x, condition = attach_case(case, LAYERS["linear"])
    one = condition["condition"][0] if condition else None
    before = model(x, **condition)
    calls = [lambda: adapter.export_lora(tmp_path / "lora", one)]
    if not case.has_delta:
        calls += [lambda: merge(model, one), lambda: adapter.delta("0", one)]
    for call in calls:
        with pytest.raises(ValueError, match="target '0'.*(no Delta W|no LoRA)"):
            call()
    assert torch.equal(model(x, **condition), before) and not any(tmp_path.iterdir())


WITH_DELTA = {name: case for name, case in GENERATED.items() if case.has_delta}


@pytest.mark.parametrize("case", WITH_DELTA.values(), ids=WITH_DELTA)
def test_3_a_generated_adapter_is_merged_with_one_condition_only(case):
    model, adapter, x, condition = attach_case(case, LAYERS["linear"])
    weight = model[0].base.weight.clone()
    for wrong, message in ((None, "pass condition="), (condition["condition"], "for 4 examples")):
        with pytest.raises(ValueError, match=message):
            merge(model, wrong)
        assert torch.equal(model[0].base.weight, weight) and not adapter.merged
