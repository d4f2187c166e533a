"""`bias`: biases of the base that are trained along, while the base keeps its own."""

import copy

import peft
import pytest
import torch
from torch import nn

import metalora.peft as mp
from metalora import AdapterConfig, ConditionConfig, TrainConfig, attach, detach, fit, load, plan, save


class Network(nn.Module):
    """Layers of several kinds, with a bias and without."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.group = nn.GroupNorm(2, 8)
        self.norm = nn.LayerNorm(8)
        self.bare = nn.Linear(8, 8, bias=False)
        self.line = nn.Linear(8, 8)
        self.eval()

    def forward(self, x):
        x = self.group(self.up(self.batch(self.conv(x)))).mean((2, 3))
        return torch.tanh(self.line(torch.tanh(self.bare(self.norm(x)))))


TARGETS = ("conv", "bare", "line")
CONSTANT = ConditionConfig(scope="constant")
BIASES = {
    "adapted": {"conv": 8, "line": 8},
    "all": dict.fromkeys(("conv", "line", "batch", "up", "group", "norm"), 8),
}
X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(2))


def config_of(bias, method="lora", **fields):
    return AdapterConfig(method, rank=2, alpha=3.0, targets=TARGETS, bias=bias, **fields)


def fill(adapter):
    """Random factors and changes of biases."""
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return adapter


def oracle(adapter):
    """The base with every Delta W in its weights and every change in its biases."""
    network = Network()
    for path in adapter.layers:
        network.get_submodule(path).weight.data += adapter.delta(path).detach()
    for path, change in adapter.bias_changes.items():
        network.get_submodule(path).bias.data += change.detach()
    return network


@pytest.mark.parametrize("method", ["lora", "dora", "multi-lora", "vera", "quanta"])
@pytest.mark.parametrize("bias", BIASES)
def test_the_model_computes_with_the_changed_biases(bias, method):
    base, model = Network(), Network()
    targets = ("line",) if method == "quanta" else TARGETS
    adapter = attach(model, AdapterConfig(method, rank=2, targets=targets, bias=bias))
    assert torch.equal(model(X), base(X))
    fill(adapter)
    expected = oracle(adapter)(X)
    assert (expected - base(X)).abs().max() > 0.1
    for fused in (True, False):
        adapter.fused = fused
        torch.testing.assert_close(model(X), expected)
    with adapter.disabled():
        assert torch.equal(model(X), base(X))
    adapter.merge()
    torch.testing.assert_close(model(X), expected)
    adapter.unmerge()
    torch.testing.assert_close(model(X), expected)
    detach(model)
    assert torch.equal(model(X), base(X))
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_bottleneck_reads_the_changed_output():
    model, changed = Network(), Network()
    adapter = fill(attach(model, AdapterConfig("loretta-adp", rank=2, targets=("line",), bias="adapted")))
    changed.line.bias.data += adapter.bias_changes["line"].detach()
    other = attach(changed, AdapterConfig("loretta-adp", rank=2, targets=("line",)))
    for key, value in adapter.learned.items():
        other.learned[key].data = value.data
    torch.testing.assert_close(model(X), changed(X))


@pytest.mark.parametrize("method", ["film", "ia3"])
def test_a_scaled_output_has_the_changed_bias_in_it(method):
    model, changed = Network(), Network()
    adapter = fill(attach(model, AdapterConfig(method, targets=("conv", "line"), bias="adapted", condition=CONSTANT)))
    for path, change in adapter.bias_changes.items():
        changed.get_submodule(path).bias.data += change.detach()
    other = attach(changed, AdapterConfig(method, targets=("conv", "line"), condition=CONSTANT))
    for key, value in adapter.learned.items():
        other.learned[key].data = value.data
    expected = changed(X)
    torch.testing.assert_close(model(X), expected)
    adapter.merge()
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("bias", BIASES)
def test_the_gradient_is_that_of_the_base_bias(bias):
    model, network = Network(), Network()
    adapter = attach(model, config_of(bias))
    model(X).square().sum().backward()
    network(X).square().sum().backward()
    assert {path: change.numel() for path, change in adapter.bias_changes.items()} == BIASES[bias]
    for path, change in adapter.bias_changes.items():
        torch.testing.assert_close(change.grad, network.get_submodule(path).bias.grad)


@pytest.mark.parametrize("bias", BIASES)
def test_they_are_counted(bias):
    model = Network()
    planned = plan(model, config_of(bias))
    without = plan(model, config_of("none"))
    assert planned.parameters - without.parameters == sum(BIASES[bias].values())
    assert attach(model, config_of(bias)).num_params() == planned.parameters


@pytest.mark.parametrize("bias", BIASES)
def test_fit_trains_them_and_a_file_keeps_them(bias, tmp_path):
    model = Network()
    adapter = attach(model, config_of(bias))
    fit(model, adapter, lambda k: model(X).square().mean(), TrainConfig(steps=2, lr=0.1))
    assert all(change.abs().max() > 0 for change in adapter.bias_changes.values())
    save(model, tmp_path / "adapter")
    loaded = Network()
    assert load(loaded, tmp_path / "adapter").config.bias == bias
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(copy.deepcopy(model)(X), model(X))


def test_an_export_has_them_as_biases_of_lora(tmp_path):
    model = Network()
    fill(attach(model, config_of("adapted"))).export_lora(tmp_path / "lora")
    torch.testing.assert_close(peft.PeftModel.from_pretrained(Network(), tmp_path / "lora")(X), model(X))


WITH_ATTENTION = nn.ModuleList([nn.Linear(4, 4), nn.MultiheadAttention(4, 2)])
REFUSED = {
    "a LoRA outside of its targets": (
        lambda: attach(Network(), config_of("all")).export_lora("nowhere"),
        "a LoRA has biases at its targets alone, and the bias of 'batch' is trained too",
    ),
    "PEFT's DoRA": (
        lambda: attach(Network(), config_of("adapted", "dora")).export_lora("nowhere"),
        "target 'conv' has a trained bias",
    ),
    "no bias at all": (
        lambda: attach(Network(), AdapterConfig(targets=("bare",), bias="adapted")),
        "no layer of the adapter has a bias",
    ),
    "a bias that is more than added": (
        lambda: attach(WITH_ATTENTION, AdapterConfig("lora", 2, targets="0", bias="all")),
        "'1', a MultiheadAttention, may do more with 'in_proj_bias'",
    ),
    "all biases in PEFT": (lambda: mp.TensorNetworkConfig(bias="all"), "bias='all' trains biases outside"),
    "an unknown word in PEFT": (lambda: mp.TensorNetworkConfig(bias="lora"), "bias 'lora'; did you mean 'lora_only'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    run, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        run()


def test_exclude_leaves_layers_out():
    adapter = attach(Network(), config_of("all", exclude=("batch", "conv")))
    assert set(adapter.bias_changes) == {"line", "up", "group", "norm"}


def test_two_adapters_of_a_peft_model_do_not_mix_theirs(tmp_path):
    names, outputs = ("default", "second"), {}
    config = dict(r=2, alpha=3.0, target_modules=list(TARGETS), bias="lora_only")
    model = peft.get_peft_model(Network(), mp.TensorNetworkConfig(**config))
    model.add_adapter("second", mp.TensorNetworkConfig(**config))
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "base_layer" in name)
    for name in names:
        adapter = mp.adapter_of(model, name)
        fill(adapter)
        adapter.bias_changes["line"].data += len(name)
        model.set_adapter(name)
        outputs[name] = oracle(adapter)(X)
        torch.testing.assert_close(model(X), outputs[name])
    model.eval()
    mixed = model(X, adapter_names=list(names))
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], outputs[name][row])
    with model.disable_adapter():
        torch.testing.assert_close(model(X), Network()(X))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(mp.load(Network(), tmp_path / "second")(X), outputs["second"])
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(X), outputs["second"])


def test_the_bias_of_metatt_is_the_bias_of_the_layer():
    """A new bias on the adapter's output (the flag `use_bias` of MetaTT's Algorithm 2) is the same function."""
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    base = copy.deepcopy(model)
    adapter = fill(attach(model, AdapterConfig("metatt-4d", rank=2, alpha=3.0, targets=("0", "1"), bias="adapted")))
    x = torch.randn(4, 8)
    for number in range(2):
        g1, g2, g3, g4 = (adapter.factors[f"G{place}"].detach() for place in (1, 2, 3, 4))
        new_bias = adapter.bias_changes[str(number)].detach()
        update = 3.0 * (x @ g1 @ g2[:, number] @ g3[:, 0] @ g4) + new_bias
        torch.testing.assert_close(model[number](x), base[number](x) + update)
