"""Weights that are not simply a parameter: what can hold W + Delta W, and what is refused by name."""

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers.integrations.finegrained_fp8 import FP8Linear

from metalora import AdapterConfig, ConditionConfig, attach, load, merge, quantise_and_attach, save, unmerge
from metalora.adapters.bit_hash import bit_hash
from metalora.fitting.warm_start import start_from_gradient
from metalora.io.base_samples import sample_base
from metalora.io.merged_model import merged_state
from support.adapters import assert_close, attach_random
from support.own_forwards import Cosine, Router

LORA = AdapterConfig("lora", 2, targets="0")


def hooked():
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(nn.Linear(4, 4))


def doubled_norm():
    return parametrizations.weight_norm(Cosine(4, 4))


def normed_bias():
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


class PackedTensor(torch.Tensor):
    """A weight that says it has 32 bits, as those of torchao do."""


PackedTensor.__module__ = "torchao.dtypes"


def packed():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4).as_subclass(PackedTensor), requires_grad=False)
    return layer


class Unused(nn.Linear):
    def forward(self, x):
        return x


class TwoInputs(nn.Linear):
    def forward(self, x, y):
        return super().forward(x + y)


REFUSED = {
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
        "computed by _SpectralNorm, which cannot",
    ),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "computed by _Orthogonal, which cannot"),
    "norm of another forward": (doubled_norm, "computed by _WeightNorm, which cannot"),
    "the old weight norm": (hooked, "its weight is no parameter, but computed from others"),
    "a computed bias": (normed_bias, "its bias is no parameter, but computed from others"),
    "float8": (lambda: FP8Linear(128, 128, block_size=(128, 128)), "torch.float8_e4m3fn; quantised weights are not"),
    "torchao": (packed, "its weight is PackedTensor; quantised weights are not"),
    "max_norm": (lambda: nn.Embedding(9, 4, max_norm=1.0), "max_norm=1.0; max_norm writes into the weight"),
    "an unused weight": (lambda: Unused(4, 4), "Unused does not compute with its `weight`"),
    "another signature": (lambda: TwoInputs(4, 4), "the forward|that of TwoInputs, could not be tried"),
}


@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_hold_the_adapted_weight_is_refused_and_unchanged(make, message):
    model = nn.Sequential(make())
    hashes, numbers = {name: bit_hash(value) for name, value in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match=f"target '0' .*{message}"):
        attach(model, LORA)
    assert torch.equal(numbers, torch.get_rng_state())
    assert hashes == {name: bit_hash(value) for name, value in model.state_dict().items()}


METHOD_REFUSED = {
    "dropout": (StdConv2d(3, 4, 3), AdapterConfig("lora", 2, dropout=0.1), "StdConv2d runs with W . ΔW as a whole"),
    "scaled outputs": (StdConv2d(3, 4, 3), AdapterConfig("ia3", 1), "StdConv2d does not scale with its weight"),
    "several outputs": (Router(4, 4), AdapterConfig("loretta-adp", 1), "Router returns more than one tensor"),
}


@pytest.mark.parametrize("layer, config, message", METHOD_REFUSED.values(), ids=METHOD_REFUSED)
def test_a_method_that_does_not_fit_the_forward_is_refused(layer, config, message):
    constant = ConditionConfig(scope="constant")
    with pytest.raises(ValueError, match=f"target '0': the forward of {message}.*exclude="):
        attach(nn.Sequential(layer), AdapterConfig(**{**vars(config), "targets": "0", "condition": constant}))


def normed():
    torch.manual_seed(0)
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)).double()


def test_a_merged_weight_norm_keeps_its_names_and_fingerprints(tmp_path):
    model, x = normed(), torch.randn(3, 4).double()
    adapter = attach_random(model, LORA)
    live, before = model(x), sample_base(model, ["0"], [])
    save(model, tmp_path / "adapter")
    state = merged_state(model)
    plain = normed()
    assert plain.state_dict().keys() == state.keys()
    plain.load_state_dict(state)
    assert_close(plain(x), live)
    merge(model)
    assert sample_base(model, ["0"], []) == before
    with pytest.raises(ValueError, match="this is the state of a merged model"):
        unmerged = normed()
        attach(unmerged, LORA)
        unmerged.load_state_dict(model.state_dict())
    model[0].base.parametrizations.weight.original0.data.mul_(2)
    with pytest.raises(ValueError, match="unmerge: target '0' was trained, loaded or converted after the merge"):
        unmerge(model)
    loaded = normed()
    load(loaded, tmp_path / "adapter")
    assert_close(loaded(x), live)
    assert adapter.merged


def test_what_sets_or_trains_the_weight_itself_is_refused():
    with pytest.raises(ValueError, match="target '0' is computed by a parametrization; remove it first"):
        quantise_and_attach(normed(), LORA)
    model = normed()
    attach(model, LORA)
    with pytest.raises(ValueError, match="target '0' is computed by a parametrization; remove it first"):
        start_from_gradient(model, lambda: model(torch.ones(1, 4).double()).sum(), rank=1)
