"""Law 11: shapes need no numbers: a forward on the meta device, or of fake tensors, has the shapes of the real one."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from metalora import AdapterConfig, ConditionConfig, attach
from support.cases import CASES, FEATURES, attach_case
from support.conv_net import BODY, SOURCES, conv_net, images
from support.layers import BATCH, LAYERS

KINDS = ("linear", "conv2d")


def pytest_generate_tests(metafunc):
    """Every case on linear and conv2d on the meta device; on one of the two in turn as fake tensors, which are slow."""
    if "case" not in metafunc.fixturenames:
        return
    every_kind = "meta" in metafunc.function.__name__ or metafunc.config.getoption("every_cell")
    cells = {}
    for number, (name, case) in enumerate(CASES.items()):
        for kind in KINDS if every_kind else KINDS[number % 2 :][:1]:
            cells[f"{name}-{kind}"] = (case, LAYERS[kind])
    metafunc.parametrize("case, layer", cells.values(), ids=cells)


def options_on_meta(case, adapter) -> dict:
    """The keywords of a forward of a mixed batch, made on the meta device."""
    if case.tasks > 1:
        return {"condition": adapter.task(torch.zeros(BATCH, dtype=torch.long, device="meta"))}
    if case.per_example:
        return {"condition": adapter.condition(torch.zeros(BATCH, FEATURES, device="meta"))}
    return {}


def test_11_a_forward_and_its_gradients_on_the_meta_device(case, layer):
    model, adapter, x, options = attach_case(case, layer, "many")
    want = model(x, **options)
    model.to("meta")
    got = model(x.to("meta"), **options_on_meta(case, adapter))
    assert (got.shape, got.dtype, got.is_meta) == (want.shape, want.dtype, True)
    got.sum().backward()
    gradients = [value.grad.shape for value in adapter.parameters() if value.grad is not None]
    assert gradients == [value.shape for value in adapter.parameters() if value.grad is not None] != []


def test_11_a_functional_call_of_fake_tensors(case, layer):
    model, _, x, options = attach_case(case, layer, "many")
    want = model(x, **options)
    with FakeTensorMode() as mode:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        fake = {name: mode.from_tensor(value) for name, value in tensors.items()}
        if options:
            values = {key: mode.from_tensor(value) for key, value in options["condition"].values.items()}
            options = {"condition": replace(options["condition"], values=values)}
        got = functional_call(model, fake, (mode.from_tensor(x),), options)
    assert (got.shape, got.dtype, got.device) == (want.shape, want.dtype, want.device)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_11_a_condition_that_is_made_inside_of_the_forward(source):
    model, x = conv_net(), images()
    config = AdapterConfig(method="metalora-tr", rank=2, targets=BODY, condition=ConditionConfig(**source, hidden=5))
    attach(model, config, example=x)
    assert model.to("meta")(x.to("meta")).shape == (3, 3)
