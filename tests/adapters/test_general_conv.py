"""Grouped, depthwise, transposed and 3-D convolutions: live, merged, in PEFT and in files they are W + Delta W."""

import contextlib
import copy

import peft
import pytest
import torch
from lycoris import create_lycoris_from_weights
from lycoris.wrapper import LycorisNetwork
from torch import nn

import metalora
import metalora.peft
from metalora import AdapterConfig, ConditionConfig, attach, find_targets
from metalora.adapters.convolutions import CONVOLUTIONS
from metalora.cost import summarise
from metalora.fitting.updates import LowRankUpdate
from metalora.fitting.warm_start import start_from_gradient
from metalora.io.lora.combine import combine
from metalora.io.lora.convert import convert
from metalora.io.lora.export_kohya import export_kohya
from metalora.io.lora.import_ import load_lora
from metalora.io.lora.snapshot import low_rank_updates
from support.adapters import assert_close, attach_random, randomise
from support.layers import LAYERS, Layer, apply

DEPTHWISE = Layer("grouped_conv2d", lambda: nn.Conv2d(8, 8, 3, 2, padding=1, groups=8), (8, 3, 4), (8, 11, 9))
MULTIPLIED = Layer("grouped_conv2d", lambda: nn.Conv2d(4, 12, 3, groups=4, bias=False), (4, 3, 4), (4, 11, 9))
DEPTHWISE_UP = Layer("conv_transpose2d", lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=4), (4, 1, 2), (4, 7, 5))
KINDS = {
    name: layer for name, layer in LAYERS.items() if layer.kind in CONVOLUTIONS and name[:5] not in ("conv1", "conv2")
}
KINDS |= {"depthwise": DEPTHWISE, "several outputs for an input": MULTIPLIED, "depthwise, transposed": DEPTHWISE_UP}
EVERY_KIND = pytest.mark.parametrize("layer", KINDS.values(), ids=KINDS)


def adapted_base(layer, method="lora", **options):
    """(model, adapter with random numbers, input, what the oracle gives for W + Delta W)."""
    model = layer.base()
    adapter = attach_random(model, AdapterConfig(method, **{"rank": 2, "targets": "0", "clip_rank": True} | options))
    x = layer.inputs("many")
    base = model[0].base
    return model, adapter, x, apply(base, x, (base.weight + adapter.delta("0")).detach())


def test_the_table_has_every_kind():
    assert {layer.kind for layer in KINDS.values()} == {*CONVOLUTIONS} - {"conv1d", "conv2d"}
    for layer in KINDS.values():
        assert [target.kind for target in find_targets(layer.base(), "0")] == [layer.kind]


@EVERY_KIND
@pytest.mark.parametrize("weight_first", (True, False))
@pytest.mark.parametrize("grad", (True, False))
def test_every_way_to_compute_it_is_the_convolution_with_w_and_its_update(layer, weight_first, grad):
    model, adapter, x, want = adapted_base(layer)
    adapter.weight_first = weight_first
    with contextlib.nullcontext() if grad else torch.no_grad():
        assert_close(model(x), want)
        assert_close(model[0](x[0]), want[0])  # without a batch axis
        assert_close(model[0].add_update(x, model[0].base(x)), want)


@EVERY_KIND
def test_the_gradients_are_those_of_the_convolution_with_w_and_its_update(layer):
    model, adapter, x, _ = adapted_base(layer)
    base, gradients = model[0].base, []
    for weight_first in (True, False, None):
        x = x.detach().requires_grad_()
        if weight_first is None:
            output = apply(base, x, base.weight + adapter.delta("0"))
        else:
            adapter.weight_first = weight_first
            output = model(x)
        gradients.append(torch.autograd.grad(output.sin().sum(), [x, *adapter.parameters()]))
    for ours in gradients[:2]:
        for got, want in zip(ours, gradients[2], strict=True):
            assert_close(got, want)


@EVERY_KIND
def test_a_hook_on_the_base_sees_every_call(layer):
    model, _, x, want = adapted_base(layer)
    outputs = []
    model[0].base.register_forward_hook(lambda module, args, output: outputs.append(output))
    assert_close(model(x), want)
    assert len(outputs) == 1


@EVERY_KIND
def test_dropout_acts_on_the_ranks(layer):
    model, adapter, x, want = adapted_base(layer, dropout=0.5)
    base = model[0].base(x)
    with torch.no_grad():
        norms = {round(float((model.train()(x) - base).norm()), 6) for _ in range(20)}
        assert len(norms) > 1 and model[0].kernel.name == "Plain"
        assert_close(model.eval()(x), want)


@EVERY_KIND
@pytest.mark.parametrize("generated", (("A",), ("B",), ("A", "B")))
def test_every_example_has_its_own_update(layer, generated):
    model = layer.base()
    condition = ConditionConfig(source="tensor", feature_size=3, hidden=4)
    config = AdapterConfig("lora", 2, targets="0", generated=generated, condition=condition)
    adapter = attach(model, config)
    randomise(adapter)
    x = layer.inputs("many")
    conditions = adapter.condition(torch.randn(len(x), 3))
    got, base = model(x, condition=conditions), model[0].base
    for number, delta in enumerate(adapter.delta("0", conditions)):
        assert_close(got[number : number + 1], apply(base, x[number : number + 1], base.weight + delta))


@pytest.mark.parametrize("layer", (DEPTHWISE, KINDS["conv_transpose2d"]), ids=("depthwise", "transposed"))
def test_in_16_bits_the_update_is_not_added_to_the_weight(layer):
    """W + Delta W would round a small Delta W away."""
    model, _, x, want = adapted_base(layer)
    with torch.no_grad():
        assert_close(model(x), want)
        assert model[0].kernel.name == "WeightFirst"
        with torch.autocast("cpu", torch.bfloat16):
            got = model.float()(x.float())
    assert model[0].kernel.name == "Plain"
    torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=2e-2 * float(want.abs().max()))


# ---- costs ---------------------------------------------------------------------------------------------------------
COSTS = {  # multiply-adds of the base and of the update at one position, by hand
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), 8 * 9, 2 * 8 * 9 + 2 * 8),
    "two groups": (nn.Conv1d(8, 6, 3, groups=2), 6 * 4 * 3, 2 * 8 * 3 + 2 * 6),
    "three axes": (nn.Conv3d(4, 6, 2), 6 * 4 * 8, 2 * 4 * 8 + 2 * 6),
    "transposed": (
        nn.ConvTranspose2d(4, 6, 3, stride=2),
        4 * 6 * 9,
        2 * 4 * 9 + 2 * 6 * 4,
    ),  # at a position of the input
    "transposed, two groups": (nn.ConvTranspose1d(4, 6, 3, 2, groups=2), 4 * 3 * 3, 2 * 4 * 3 + 2 * 6 * 2),
}


@pytest.mark.parametrize("layer, base, update", COSTS.values(), ids=COSTS)
def test_what_it_costs(layer, base, update):
    summary = summarise(nn.Sequential(layer), AdapterConfig("lora", 2, targets="0"))
    assert (summary.base_multiply_adds, summary.multiply_adds) == (base, update)
    sizes = find_targets(nn.Sequential(layer), "0")[0].sizes
    inputs = layer.weight.numel() // layer.out_channels
    assert summary.parameters == 2 * (inputs + layer.out_channels) and sizes["out"] * inputs == layer.weight.numel()


# ---- presets -------------------------------------------------------------------------------------------------------
def test_a_rank_above_a_depthwise_kernel_is_refused_by_name_or_lowered():
    with pytest.raises(ValueError, match="target '0': rank 16 of bond 'r' is above 9.*clip_rank: true"):
        attach(nn.Sequential(nn.Conv2d(32, 32, 3, groups=32)), AdapterConfig("lora", 16, targets="conv"))
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32))
    assert attach(model, AdapterConfig("lora", 16, targets="conv", clip_rank=True)).factors["0.B"].shape == (9, 32)


# ---- fits and files ------------------------------------------------------------------------------------------------
@EVERY_KIND
def test_updates_come_out_and_go_in_again(layer):
    model, adapter, x, want = adapted_base(layer)
    updates = {path: LowRankUpdate(*(half.double() for half in u)) for path, u in low_rank_updates(adapter).items()}
    assert updates["0"].down.shape[2:] == model[0].base.kernel_size
    metalora.detach(model)
    combined, _ = combine(model, [updates, updates], weights=[0.25, 0.75])
    assert_close(model(x), want)
    metalora.detach(model)
    _, report = convert(model, [updates], AdapterConfig("fact-tt", 2, alpha=1.0))
    assert report.error < 1e-6
    assert_close(model(x), want)


@EVERY_KIND
def test_a_step_along_the_gradient_of_the_weight_is_downhill(layer):
    model = layer.base()
    x = layer.inputs("many")
    target = torch.randn_like(model(x))

    def loss():
        return (model(x) - target).square().mean()

    with torch.no_grad():
        before = loss()
    attach(model, AdapterConfig("lora", 2, targets="0"))
    start_from_gradient(model, loss, rank=2, size=1e-3)
    with torch.no_grad():
        assert loss() < before


@EVERY_KIND
@pytest.mark.parametrize("method", ("lora", "lotr", "loha", "dora", "ia3"))
def test_in_peft_it_is_the_same(layer, method, tmp_path):
    base = layer.base()
    pristine = copy.deepcopy(base)
    config = metalora.peft.TensorNetworkConfig(method=method, r=2, target_modules=["0"], clip_rank=True)
    model = peft.get_peft_model(base, config).eval()
    adapter = metalora.peft.adapter_of(model)
    randomise(adapter)
    x = layer.inputs("many")
    wrapped = base[0]
    assert wrapped.in_features == wrapped.base_layer.in_channels
    with torch.no_grad():
        output, plain = model(x), wrapped.base_layer(x)
        delta = adapter.delta("0")
        want = apply(wrapped.base_layer, x, wrapped.base_layer.weight + delta)
        if method != "ia3":  # which scales the bias too
            assert_close(output, want)
        assert (output - plain).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        loaded = peft.PeftModel.from_pretrained(pristine, tmp_path).eval()
        assert_close(loaded(x), output)
        assert_close(model.merge_and_unload()(x), output)


def test_peft_itself_loads_the_export_of_a_convolution_of_three_axes(tmp_path):
    layer = Layer("conv3d", lambda: nn.Conv3d(3, 4, (1, 2, 3), stride=(1, 2, 1), padding=1), (3, 2, 3, 3), (3, 2, 4, 4))
    for method in ("lora", "dora"):
        model, adapter, x, want = adapted_base(layer, method)
        adapter.export_lora(tmp_path / method)
        metalora.detach(model)
        loaded = peft.PeftModel.from_pretrained(model, tmp_path / method).eval()
        assert_close(loaded(x), want, 1e-6)
        if method == "lora":
            again = layer.base()
            again.load_state_dict(loaded.unload().state_dict())
            load_lora(again, tmp_path / method)
            assert_close(again(x), want, 1e-6)


NOT_EXPORTED = {
    "depthwise": "groups=8, and PEFT's LoRA of a grouped convolution reads all groups",
    "grouped_conv1d": "groups=2, and PEFT's LoRA of a grouped",
    "conv_transpose2d": "a ConvTranspose2d, and no format of LoRA has transposed",
}


@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_what_no_format_can_hold_is_refused_by_name(name, tmp_path):
    _, adapter, _, _ = adapted_base(KINDS[name])
    with pytest.raises(ValueError, match=f"export: target '0' (is|has) {NOT_EXPORTED[name]}"):
        adapter.export_lora(tmp_path / "lora")
    assert not any(tmp_path.iterdir())


def test_pefts_own_lora_of_a_grouped_convolution_is_refused_by_name(tmp_path):
    model = peft.get_peft_model(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), peft.LoraConfig(r=2, target_modules=["0"]))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the LoRA of a grouped convolution, which in PEFT reads all groups"):
        load_lora(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), tmp_path)


LYCORIS = ("depthwise", "several outputs for an input", "grouped_conv2d", "conv3d")


@pytest.mark.parametrize("name", LYCORIS)
@pytest.mark.parametrize("method", ("lora", "loha", "lokr", "lokr-full", "loha-tucker", "lokr-tucker", "locon-tucker"))
def test_lycoris_runs_the_file_as_this_library(name, method, tmp_path):
    rank = 1 if method == "loha-tucker" else 2  # whose bonds have one rank, and a depthwise convolution one input
    model, adapter, x, want = adapted_base(KINDS[name], method, alpha=3.0, rank=rank)
    wrapper = nn.ModuleDict({"net": model})
    file = tmp_path / "file.safetensors"
    export_kohya(adapter, file, prefix="lycoris")
    metalora.detach(model)
    weights = load_file_as_double(file)
    LycorisNetwork.apply_preset({"target_module": ["Sequential"], "target_name": []})
    network, _ = create_lycoris_from_weights(1.0, None, wrapper["net"], weights)
    network.double().apply_to()
    with torch.no_grad():
        assert_close(model(x), want, 1e-6)
    network.restore()
    load_lora(model, file)
    assert_close(model(x), want, 1e-5)


def load_file_as_double(file):
    from safetensors.torch import load_file

    return {name: value.double() for name, value in load_file(file).items()}
