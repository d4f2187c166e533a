"""Models that read the attributes of an adapted layer, and models that compute with its weight by themselves."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import nn
from transformers import SwinConfig, SwinModel, T5Config, T5Model, ViTConfig, ViTModel, WhisperConfig, WhisperModel

from metalora import AdapterConfig, ConditionConfig, attach, merge
from metalora.adapters.layers.adapted_tensor import AdaptedTensor
from metalora.adapters.weight_readers import computed_with
from support.adapters import assert_close, attach_random, randomise

LORA = AdapterConfig("lora", rank=1, targets="all")
SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
TOKENS = torch.tensor([[1, 2, 3], [3, 2, 1]])


def vit():
    return ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4)), {"pixel_values": torch.rand(2, 3, 8, 8).double()}


def t5():
    sizes = dict(vocab_size=9, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2)
    return T5Model(T5Config(**sizes)), {"input_ids": TOKENS, "decoder_input_ids": TOKENS}


def whisper():
    sizes = dict(vocab_size=60, d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                 decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, max_source_positions=8,
                 num_mel_bins=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)  # fmt: skip
    model = WhisperModel(WhisperConfig(**sizes))
    return model, {"input_features": torch.rand(2, 4, 16).double(), "decoder_input_ids": TOKENS}


def swin_of_transformers():
    sizes = dict(image_size=16, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
    return SwinModel(SwinConfig(**sizes)), {"pixel_values": torch.rand(2, 3, 16, 16).double()}


def beit():
    sizes = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3, qkv_bias=True)
    return Beit(**sizes), {"x": torch.rand(2, 3, 8, 8).double()}


def eva():
    sizes = dict(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=3, qkv_fused=True)
    return Eva(**sizes), {"x": torch.rand(2, 3, 8, 8).double()}


def swin():
    sizes = dict(img_size=16, patch_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2, num_classes=3)
    return SwinTransformerV2(**sizes), {"x": torch.rand(2, 3, 16, 16).double()}


MODELS = {
    "ViT": vit,
    "T5": t5,
    "Whisper": whisper,
    "Swin": swin_of_transformers,
    "BEiT": beit,
    "EVA": eva,
    "SwinV2": swin,
}
COMPUTES = {"BEiT": "blocks.0.attn.qkv", "EVA": "blocks.0.attn.qkv", "SwinV2": "layers.1.blocks.0.attn.qkv"}


def run(make):
    """A model in float64 with random numbers, and a function that runs it."""
    torch.manual_seed(0)
    model, inputs = make()
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)

    def output(network=model):
        result = network(**inputs)
        return result if isinstance(result, torch.Tensor) else result[0]

    return model, output


@pytest.mark.parametrize("name", MODELS)
def test_live_is_merged_and_every_factor_has_a_gradient(name):
    model, output = run(MODELS[name])
    adapter = attach_random(model, LORA)
    live = output()
    live.square().sum().backward()
    without = [key for key, factor in adapter.learned.items() if factor.grad is None or not factor.grad.any()]
    assert all(key.startswith("pooler") for key in without)  # whose output is not the one that is read here
    assert name not in COMPUTES or f"{COMPUTES[name]}.A" in adapter.learned
    merge(model)
    assert_close(output(), live)


@pytest.mark.parametrize("name", COMPUTES)
def test_a_weight_that_the_model_computes_with_takes_part_alone(name):
    model, output = run(MODELS[name])
    before = output()
    adapter = attach_random(model, AdapterConfig("lora", rank=1, targets=COMPUTES[name]))
    live = output()
    assert not torch.allclose(live, before)
    with adapter.disabled():
        assert torch.equal(output(), before)
    torch._dynamo.reset()
    assert_close(output(torch.compile(model, backend="eager")), live)


CONSTANT = ConditionConfig(scope="constant")
GENERATED = dict(condition=ConditionConfig(source="tensor", feature_size=3, hidden=2))
NO_SINGLE_WEIGHT = {
    "generated": (AdapterConfig("metalora-cp", 1, **GENERATED), "the adapter has another weight for each example"),
    "tasks": (AdapterConfig("mtlora", (1, 1), tasks=2), "the adapter has another weight for each example"),
    "bottleneck": (AdapterConfig("loretta-adp", 1), "loretta-adp is not a change of a weight"),
    "dropout": (AdapterConfig("lora", 1, dropout=0.5), "it would compute without the adapter's dropout"),
    "a bias for none": (
        AdapterConfig("film", 1, condition=CONSTANT),
        "film adds a bias, which the model would not read",
    ),
}


class Direct(nn.Module):
    """Computes with the weight of a layer by itself."""

    def __init__(self, bias=False):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.read = nn.Linear(4, 4, bias=bias)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x.to(self.first.weight.dtype))
        return self.head(F.linear(x, self.read.weight, self.read.bias))


def with_(config, **changes):
    return AdapterConfig(**{**vars(config), **changes})


@pytest.mark.parametrize("config, reason", NO_SINGLE_WEIGHT.values(), ids=NO_SINGLE_WEIGHT)
def test_what_has_no_single_weight_is_refused_by_name_and_left_out_by_a_preset(config, reason):
    model = Direct()
    with pytest.raises(ValueError, match=f"target 'read': the model computes with .*{reason}.*exclude="):
        attach(model, with_(config, targets="read"))
    assert type(model.read) is nn.Linear
    with pytest.warns(UserWarning, match=f"1 weight because the model computes with .*{reason} \\(read\\)"):
        adapter = attach(model, with_(config, targets="linear"))
    assert [*adapter.targets] == ["first"] and "read" in [weight.path for weight in adapter.skipped]


def test_a_support_set_has_one_weight():
    model, x = Direct(bias=True).double(), torch.randn(5, 4).double()
    condition = ConditionConfig(source="tensor", feature_size=3, hidden=2, scope="support", labelled=False)
    adapter = attach_random(model, AdapterConfig("metalora-cp", 2, targets="read", condition=condition))
    made = adapter.condition(torch.randn(6, 3))
    expected = F.linear(model.first(x), model.read.base.weight + adapter.delta("read", made), model.read.base.bias)
    assert_close(model(x, condition=made), model.head(expected))


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "film", "loha", "quanta"])
def test_weight_and_bias_are_those_of_the_merged_model(method):
    model, x = Direct(bias=True).double(), torch.randn(5, 4).double()
    adapter = attach_random(
        model, AdapterConfig(method, 2, targets="read", bias="adapted", clip_rank=True, condition=CONSTANT)
    )
    weight, bias, live = model.read.weight.clone(), model.read.bias.clone(), model(x)
    assert_close(live, model.head(model.read(model.first(x))))
    merge(model)
    assert_close(weight, model.read.base.weight)
    assert_close(bias, model.read.base.bias)
    assert_close(model(x), live)
    assert adapter.merged


# ---- the tensor itself -----------------------------------------------------------------------------------------------
def one_layer(layer=None):
    model = nn.Sequential(layer or nn.Linear(4, 3))
    return model, attach_random(model, AdapterConfig("lora", 2, targets="0"))


def test_a_look_computes_nothing(monkeypatch):
    model, _ = one_layer()
    monkeypatch.setattr(model[0], "delta", lambda values: pytest.fail("computed"))
    weight, base = model[0].weight, model[0].base.weight
    assert isinstance(weight, torch.Tensor) and (weight.dtype, weight.device) == (base.dtype, base.device)
    assert weight.shape == base.shape and weight.ndim == 2 and len(weight) == 3 and weight.numel() == 12
    assert weight.is_floating_point() and weight.stride() == base.stride() and not weight.requires_grad
    assert torch.ones(2, dtype=torch.float64).to(weight).dtype == base.dtype and weight.new_zeros(2).dtype == base.dtype
    assert weight.detach().shape == weight.data.shape == base.shape


READS = {
    "a product": lambda w: torch.ones(4) @ w.T,
    "an index": lambda w: w[1],
    "a sum": lambda w: (w + 1).sum(),
    "a list": lambda w: torch.cat([w, w]),
    "a keyword": lambda w: F.linear(torch.ones(4), weight=w),
    "a copy": lambda w: w.clone(),
    "detached": lambda w: w.detach() * 1,
    "data": lambda w: w.data * 1,
    "numpy": lambda w: torch.from_numpy(w.detach().numpy().copy()),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_computation_has_the_adapted_weight(read):
    model, adapter = one_layer()
    assert isinstance(model[0].weight, AdaptedTensor)
    torch.testing.assert_close(read(model[0].weight), read(model[0].base.weight + adapter.delta("0")))


WRITES = {
    "in place": lambda w: w.mul_(2),
    "an element": lambda w: w.__setitem__(0, 1.0),
    "data": lambda w: w.data.copy_(torch.zeros(3, 4)),
    "an initialisation": nn.init.normal_,
    "out": lambda w: torch.add(torch.zeros(3, 4), 1, out=w),
    "a hook": lambda w: w.register_hook(lambda grad: grad),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_that_would_be_lost_is_refused(write):
    model, _ = one_layer()
    with pytest.raises(ValueError, match="target '0': the model reads the weight .* changes it, which would have no"):
        write(model[0].weight)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        return None, None


def test_a_function_that_would_lose_the_gradient_is_refused():
    model, adapter = one_layer()
    x = torch.ones(2, 4)
    with pytest.raises(ValueError, match="target '0': .* passes it to a torch.autograd.Function"):
        Product.apply(x, model[0].weight)
    with torch.no_grad():
        torch.testing.assert_close(Product.apply(x, model[0].weight), x @ (model[0].base.weight + adapter.delta("0")).T)


def test_an_adapter_that_differs_by_example_can_be_looked_at_and_not_computed_with():
    model = nn.Sequential(nn.Linear(4, 3))
    adapter = attach(model, AdapterConfig("metalora-cp", 2, targets="0", **GENERATED))
    randomise(adapter)
    with adapter.using(adapter.condition(torch.randn(2, 3))):
        assert model[0].weight.dtype == torch.float32 and model[0].bias is model[0].base.bias
        with pytest.raises(ValueError, match="target '0': .* computes with it, while the adapter differs by example"):
            model[0].weight.sum()


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.5}], ids=["generated", "and dropout"])
def test_a_compiled_model_may_look_at_an_adapter_that_differs_by_example(changes):
    torch._dynamo.reset()
    model, output = run(vit)
    adapter = attach_random(model, AdapterConfig("metalora-cp", 1, targets="all", **GENERATED, **changes))
    condition = adapter.condition(torch.randn(2, 3))
    with adapter.using(condition):
        assert_close(output(torch.compile(model, backend="eager")), output())


class Alias(nn.Module):
    """Computes with the weight of a layer that it has given another name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        layer = self.layer
        return F.linear(x, layer.weight, layer.bias)


def test_a_computation_that_no_source_shows_is_an_error_when_it_runs():
    model, x = Alias(), torch.randn(2, 4)
    adapter = attach_random(model, AdapterConfig("metalora-cp", 1, targets="layer", **GENERATED))
    with adapter.using(adapter.condition(torch.randn(2, 3))):
        with pytest.raises(ValueError, match="target 'layer': .* computes with it, while the adapter differs"):
            model(x)
        torch._dynamo.reset()
        with pytest.raises(Exception, match="LookedAt"):
            torch.compile(model, backend="eager", fullgraph=True)(x)


def test_attributes_are_those_of_the_base_but_for_its_parts():
    convolution = nn.Conv1d(4, 3, 2, stride=2)
    convolution.register_buffer("embed_scale", torch.tensor(2.0))
    model, _ = one_layer(torch.nn.utils.parametrizations.weight_norm(convolution))
    layer = model[0]
    assert (layer.stride, layer.kernel_size, layer.in_channels, layer.embed_scale.item()) == ((2,), (2,), 4, 2.0)
    for name in ("parametrizations", "reset_parameters", "_conv_forward", "nothing"):
        with pytest.raises(AttributeError, match=f"'AdaptedConv' object has no attribute '{name}'"):
            getattr(layer, name)
    names = {name for name, _ in model.named_parameters()} | {*model.state_dict()}
    assert not names & {"0.weight", "0.bias"}
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(one_layer()[0]))):
        assert copied[0].in_channels == 4 if hasattr(copied[0], "in_channels") else copied[0].in_features == 4


class Strided(nn.Conv1d):
    def output_length(self, length):
        return self._of(length)

    def _of(self, length):
        return length // self.stride[0]

    def energy(self):
        return self._square()

    def _square(self):
        return self.weight.square().sum()


def test_a_method_that_computes_with_settings_alone_is_that_of_the_base():
    model, _ = one_layer(Strided(4, 3, 2, stride=2))
    assert model[0].output_length(9) == 4
    with pytest.raises(AttributeError, match="'AdaptedConv' object has no attribute 'energy'"):
        model[0].energy()


def test_only_what_a_forward_reaches_and_computes_with_is_found():
    assert computed_with(Direct()) == {"read"}
    assert computed_with(nn.Sequential(Direct())) == {"0.read"}
