"""A merge stores what the type of the base can hold, or it changes nothing and writes nothing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, merge, unmerge
from metalora.io.merged_model import save_merged


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5), nn.Linear(5, 2)).eval()


def adapted(dtype, method="lora", targets="linear", size=300.0, **options):
    """A network whose factors and changes of biases all are `size`."""
    model = network().to(dtype)
    adapter = attach(
        model, AdapterConfig(method, rank=2, targets=targets, **options), example=torch.zeros(1, 3, 4, 4, dtype=dtype)
    )
    with torch.no_grad():
        for value in adapter.parameters():
            value.fill_(size)
    return model, adapter


GENERATED = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=5)
CONSTANT = ConditionConfig(scope="constant")
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
BEYOND = {
    "float16": (HALF, {}, "target '2': 180000 is beyond the largest number of float16, 65504"),
    "float16 of a convolution": (HALF, {"targets": "conv"}, "target '0': 180000 is beyond .* float16"),
    "float16 below": (HALF, {"alpha": -2.0}, "target '2': -180000 is beyond"),
    "float16 of a product": (HALF, {"method": "loha", "size": 20.0}, "beyond the largest number of float16"),
    "float16 of a bias": (HALF, {"bias": "adapted", "size": 0.1, "bias_size": 1e5}, "the bias of target"),
    "float16 of another bias": (HALF, {"bias": "all", "size": 0.1, "other_size": 1e5}, "the bias of '"),
    "float16 of scales": (HALF, {"method": "film", "size": 1e6, "condition": CONSTANT}, "is beyond the largest number"),
    "float32": (SINGLE, {"size": 1e30}, "NaNs detected"),
    "bfloat16": (BRAIN, {"size": 1e30}, "NaNs detected"),
    "NaN": (SINGLE, {"size": float("nan")}, "NaNs detected"),
}  # fmt: skip


@pytest.mark.parametrize("verb", ("merge", "save_merged"))
@pytest.mark.parametrize("dtype, options, message", BEYOND.values(), ids=BEYOND)
def test_what_the_base_cannot_hold_changes_nothing(dtype, options, message, verb, tmp_path):
    sizes = {name: options[name] for name in ("bias_size", "other_size") if name in options}
    model, adapter = adapted(dtype, **{name: value for name, value in options.items() if name not in sizes})
    with torch.no_grad():
        for path, change in adapter.bias_changes.items():
            if path in adapter.targets and "bias_size" in sizes:
                change.fill_(sizes["bias_size"])
            if path not in adapter.targets and "other_size" in sizes:
                change.fill_(sizes["other_size"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        merge(model) if verb == "merge" else save_merged(model, tmp_path / "merged.safetensors")
    assert not adapter.merged and not list(tmp_path.iterdir())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_values_for_two_and_features_for_one_change_nothing():
    model, adapter = adapted(SINGLE, "metalora-cp", size=0.1, condition=GENERATED)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    condition = adapter.condition(torch.randn(6, 5))
    wrong = replace(condition, values={key: torch.cat([value, value]) for key, value in condition.values.items()})
    with pytest.raises(ValueError, match="expected"):
        merge(model, wrong)
    assert not adapter.merged
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype, size", [(HALF, 100.0), (BRAIN, 300.0), (SINGLE, 300.0)])
def test_what_the_base_can_hold_is_merged_and_restored(dtype, size):
    model, adapter = adapted(dtype, targets=("4",), size=size)
    plain = network().to(dtype)[4].weight
    merge(model)
    want = plain.double() + 2 * size**2
    torch.testing.assert_close(model[4].base.weight.double(), want, rtol=torch.finfo(dtype).eps, atol=0)
    unmerge(model)
    assert torch.equal(model[4].base.weight, plain)


def test_an_infinity_of_the_base_stays():
    model = network()
    with torch.no_grad():
        model[4].weight[0, 0] = float("-inf")
    attach(model, AdapterConfig("lora", rank=2, targets=("4",)))
    merge(model)
    assert model[4].base.weight[0, 0] == float("-inf")
