"""`torch.jit.trace` of an adapted model, and of a merged one, gives its output, for other inputs too."""

import pytest
import timm
import torch

from metalora import AdapterConfig
from support.adapters import assert_close, attach_random

# Which kernel runs is fixed by the sizes of the traced input; all of them are right for every size.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
METHODS = pytest.mark.parametrize("method", ("lora", "metatt-4d", "metalora-cp", "dora", "quanta", "vera"))
FAMILIES = pytest.mark.parametrize("family", ("resnet", "vit"))


def adapted(family, method):
    if family == "resnet":
        sizes = dict(channels=(8, 8, 16, 16), stem_width=4, num_classes=3)
        model, targets = timm.create_model("resnet10t", **sizes), "layer*.conv*"
    else:
        sizes = dict(img_size=32, depth=2, embed_dim=16, num_heads=2, num_classes=3)
        model, targets = timm.create_model("vit_tiny_patch16_224", **sizes), "qkv,fc1"
    model = model.eval().double()
    config = AdapterConfig(method, rank=2, targets=targets, widths="max_slice", clip_rank=True)
    return model, attach_random(model, config, std=0.3)


def pictures(examples):
    return torch.rand(examples, 3, 32, 32, dtype=torch.float64)


def traced_output_is_right(model):
    with torch.no_grad():
        traced = torch.jit.trace(model, pictures(2), check_trace=False)  # the comparison below is stricter
        for examples in (2, 3):
            x = pictures(examples)
            assert_close(traced(x), model(x))


@METHODS
@FAMILIES
def test_a_trace_of_an_adapted_model(family, method):
    model, adapter = adapted(family, method)
    if adapter.per_example:
        with torch.no_grad():
            adapter.fix(adapter.condition(pictures(2)).mean())
    traced_output_is_right(model)


@METHODS
@FAMILIES
def test_a_trace_of_a_merged_model(family, method):
    model, adapter = adapted(family, method)
    with torch.no_grad():
        adapter.merge(adapter.condition(pictures(2)).mean() if adapter.per_example else None)
    traced_output_is_right(model)


@FAMILIES
def test_a_trace_makes_the_conditions_of_its_inputs(family):
    traced_output_is_right(adapted(family, "metalora-cp")[0])
