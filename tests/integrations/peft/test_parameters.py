"""target_parameters: experts, routers and attention's projections under PEFT's own verbs."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import metalora
import metalora.peft as mp
from support.adapters import assert_close, randomise
from support.holders import HOLDERS, IN, MIXTURE, with_weights

NAMES = {
    "experts": MIXTURE,
    "experts-transposed": MIXTURE,
    "attention": ("in_proj_weight", "out_proj.weight"),
    "encoder": ("in_proj_weight", "out_proj.weight", "linear1.weight", "linear2.weight"),
}
METHODS = ("lora", "metatt-4d", "lotr", "dora")


class Net(nn.Module):
    def __init__(self, holder):
        super().__init__()
        self.fc = nn.Linear(IN, IN)
        self.body = HOLDERS[holder].base()

    def forward(self, x):
        return self.body(self.fc(x))


def net(holder):
    torch.manual_seed(0)
    return Net(holder).double().eval()


def config(holder, method="lora", **options):
    options = {"r": 2, "target_modules": [], "target_parameters": list(NAMES[holder]), "clip_rank": True, **options}
    return mp.TensorNetworkConfig(method=method, **options)


def tuned(holder, method="lora", **options):
    plain = net(holder)
    model = get_peft_model(copy.deepcopy(plain), config(holder, method, **options)).double().eval()
    adapter = mp.adapter_of(model)
    randomise(adapter, 0.3)
    return plain, model, adapter


X = torch.randn(2, 5, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
EVERY_CELL = pytest.mark.parametrize("holder, method", [(h, m) for h in NAMES for m in METHODS])


@EVERY_CELL
@torch.no_grad()
def test_forward_merge_disable_and_unload(holder, method):
    plain, model, adapter = tuned(holder, method)
    before = plain(X)
    dense = with_weights(copy.deepcopy(plain), {path: adapter.delta(path) for path in adapter.targets})
    want = dense(X)
    assert (want - before).abs().max() > 1e-3
    assert_close(model(X), want)
    with model.disable_adapter():
        assert_close(model(X), before)
    model.merge_adapter()
    assert adapter.merged
    assert_close(model(X), want)
    with pytest.raises(ValueError, match="is merged, so the frozen network cannot run"), adapter.disabled():
        pass
    model.unmerge_adapter()
    assert not adapter.merged
    assert_close(model(X), want)
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.unload().state_dict().items())
    _, model, adapter = tuned(holder, method)
    unloaded = model.merge_and_unload(safe_merge=True)
    assert_close(unloaded(X), dense_of(plain, adapter)(X))
    assert unloaded.state_dict().keys() == state.keys() and "forward" not in vars(unloaded)


def dense_of(plain, adapter):
    state = adapter.state_dict()
    twin = metalora.attach(copy.deepcopy(plain), adapter.config)
    twin.load_state_dict(state)
    return with_weights(copy.deepcopy(plain), {path: twin.delta(path) for path in twin.targets})


@EVERY_CELL
def test_training_and_a_saved_folder(holder, method, tmp_path):
    plain, model, adapter = tuned(holder, method)
    model(X).square().sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(trained) == len(list(adapter.parameters()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).double().eval()
    with torch.no_grad():
        assert_close(loaded(X), model(X))
        again = mp.load(copy.deepcopy(plain), tmp_path).double().eval()
        assert_close(again(X), model(X))


@torch.no_grad()
def test_several_adapters():
    plain, model, first = tuned("experts")
    model.add_adapter("second", config("experts", "lotr", target_parameters=["experts.down_proj", "gate.weight"]))
    second = mp.adapter_of(model.double(), "second")
    randomise(second, 0.3)
    deltas = [{path: adapter.delta(path) for path in adapter.targets} for adapter in (first, second)]
    alone = [with_weights(copy.deepcopy(plain), updates)(X) for updates in deltas]
    assert_close(model(X), alone[0])
    model.set_adapter("second")
    assert_close(model(X), alone[1])
    model.base_model.set_adapter(["default", "second"])
    both = with_weights(with_weights(copy.deepcopy(plain), deltas[0]), deltas[1])(X)
    assert_close(model(X), both)
    model.merge_adapter()
    assert_close(model(X), both)
    model.unmerge_adapter()
    model.base_model.set_adapter("default")
    model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "mixed", combination_type="cat")
    model.set_adapter("mixed")
    scaled = [{p: w * d for p, d in updates.items()} for w, updates in zip((0.5, 2.0), deltas, strict=True)]
    assert_close(model(X), with_weights(with_weights(copy.deepcopy(plain), scaled[0]), scaled[1])(X), 1e-5)
    model.delete_adapter("default")
    model.set_adapter("second")
    assert_close(model(X), alone[1])


def test_lora_is_pefts_own(tmp_path):
    """The same folder through `export_lora`, loaded by PEFT as its own LoRA."""
    plain, model, adapter = tuned("experts", target_modules=["fc"])
    adapter.export_lora(tmp_path / "lora")
    theirs = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "lora").double().eval()
    assert type(next(iter(theirs.peft_config.values()))) is LoraConfig
    with torch.no_grad():
        assert_close(theirs(X), model(X))


def adapted_twice(names):
    return get_peft_model(net("attention"), config("attention", target_modules=["out_proj"], target_parameters=names))


def mixed_batch():
    _, model, _ = tuned("experts")
    model(X, adapter_names=["default", "__base__"])


def two_active():
    _, model, _ = tuned("experts", "dora")
    model.add_adapter("second", config("experts"))
    model.base_model.set_adapter(["default", "second"])
    model(X)


REFUSED = {
    "an unknown parameter": (
        lambda: get_peft_model(net("experts"), config("experts", target_parameters=["experts.down_prj"])),
        "target_parameters: 'experts.down_prj' is no parameter of Net",
    ),
    "no list": (lambda: config("experts", target_parameters="experts"), "target_parameters is 'experts', expected a"),
    "a layer that attention reads": (
        lambda: adapted_twice(["in_proj_weight"]),
        r"'body.0.out_proj' is not supported: .*; take target_parameters=\['body.0.out_proj.weight'\]",
    ),
    "a layer and its weight": (
        lambda: get_peft_model(
            net("experts"), config("experts", target_modules=["fc"], target_parameters=["fc.weight"])
        ),
        "targets 'fc' and 'fc.weight' are one weight",
    ),
    "a condition": (
        lambda: get_peft_model(
            net("experts"),
            config("experts", "metalora-cp", condition={"source": "tensor", "feature_size": 3}),
        ),
        "is a matrix that its module reads itself, and method 'metalora-cp' takes c from a condition",
    ),
    "a mixed batch": (mixed_batch, "adapter_names: parameter 'weight' is adapted, and one weight serves all examples"),
    "two that do not add up": (two_active, "parameter 'weight': several adapters are active"),
}


@pytest.mark.parametrize("call, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_adapted_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
