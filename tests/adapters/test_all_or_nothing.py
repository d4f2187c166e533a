"""Whatever ends a load, Ctrl-C too: the model is as it was."""

import pytest
import torch
from torch import nn

import metalora
from metalora import AdapterConfig, ConditionConfig
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.attaching import attach_updates
from metalora.io.lora.combine import combine
from metalora.io.lora.convert import convert
from metalora.io.mixture import mixture
from support.unchanged import unchanged


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)).train()


def updates():
    return {"0": LowRankUpdate(torch.ones(2, 6), torch.ones(6, 2))}


def mix(model, folder):
    for name in ("a", "b"):
        other = net()
        metalora.attach(other, AdapterConfig("lora", rank=2, targets="0"))
        metalora.save(other, folder / name)
    condition = ConditionConfig(source="pooled")
    return mixture(model, [folder / "a", folder / "b"], condition, example=torch.randn(2, 6))


LOADERS = {  # what attaches, and where it is interrupted behind the attach
    "attach_updates": (lambda model, _: attach_updates(model, updates()), "metalora.io.lora.attaching.set_factors"),
    "combine": (lambda model, _: combine(model, [updates()], [1.0]), "metalora.io.lora.attaching.set_factors"),
    "convert": (
        lambda model, _: convert(model, [updates()], AdapterConfig("lora", rank=2)),
        "metalora.io.lora.convert.fit_updates",
    ),
    "mixture": (mix, "metalora.io.mixture._fill"),
}  # fmt: skip


@pytest.mark.parametrize("error", (KeyboardInterrupt, RuntimeError, ValueError))
@pytest.mark.parametrize("case", LOADERS)
def test_an_error_behind_the_attach(case, error, tmp_path, monkeypatch):
    load, place = LOADERS[case]
    seen = []

    def interrupt(*_):
        seen.append(metalora.adapter_of(model) is not None)
        raise error

    monkeypatch.setattr(place, interrupt)
    model = net()
    with unchanged(model), pytest.raises(error):
        load(model, tmp_path)
    assert seen == [True]  # the model had an adapter when it was interrupted
    monkeypatch.undo()
    load(model, tmp_path)  # which it can have now


CHANGES = {
    "a module": lambda model: setattr(model, "0", nn.Linear(6, 6)),
    "a part": lambda model: model[0].register_module("part", nn.ReLU()),
    "a hook": lambda model: model[2].register_forward_hook(lambda *_: None),
    "its own forward": lambda model: setattr(model, "forward", lambda x: x),
    "an attribute": lambda model: setattr(model[0], "name", "a"),
    "no parameter": lambda model: model[0].register_parameter("bias", None),
    "gradients": lambda model: model.requires_grad_(False),
    "evaluation": lambda model: model.eval(),
    "a container": lambda model: model.listed.append(2),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_that_are_taken_back(change):
    model = net()
    model.listed = [1]
    with unchanged(model), pytest.raises(RuntimeError), unchanged_on_error(model, None):
        change(model)
        raise RuntimeError
    with pytest.raises(AssertionError), unchanged(model), unchanged_on_error(model):  # without an error it stays
        change(model)
