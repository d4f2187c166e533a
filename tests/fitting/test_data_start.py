"""Starts of LoRA by one word, and EVA's from data, next to PEFT's."""

import copy
import dataclasses
import sys

import peft
import pytest
import torch
from peft import EvaConfig, LoraConfig, get_eva_state_dict
from peft.tuners.lora.config import CordaConfig
from torch import nn

import metalora.peft as mp
from metalora import AdapterConfig, TrainConfig, attach, detach, fit, load, save, start_from_data
from metalora.training.parameters import TrainedParameters

TARGETS = ("first", "second", "third")


class Network(nn.Module):
    """Three layers, whose inputs have a few directions of large variance."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(12, 16), nn.Linear(16, 10), nn.Linear(10, 8)

    def forward(self, x, attention_mask=None):
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


X = (torch.randn(64, 12, generator=torch.Generator().manual_seed(1)) * torch.tensor([4.0, *[0.3] * 11])) + 1.0


def config_of(init="eva", **fields):
    return AdapterConfig("lora", rank=3, targets=TARGETS, init=init, **fields)


def of_peft(rho):
    """PEFT's A, (rank, in), of every target that gets one."""
    config = LoraConfig(
        r=3, target_modules=list(TARGETS), init_lora_weights="eva", eva_config=EvaConfig(rho=rho, tau=0.999)
    )
    loader = [{"x": X}]
    options = dict(prepare_model_inputs_fn=None, prepare_layer_inputs_fn=None, show_progress_bar=False)
    state = get_eva_state_dict(Network(), loader, config, forward_fn=lambda model, batch: model(**batch), **options)
    return {name.removesuffix(".weight").removeprefix("base_model.model."): value for name, value in state.items()}


@pytest.mark.parametrize("rho", [1.0, 2.0])
def test_eva_has_the_directions_and_ranks_of_peft(rho):
    model, expected = Network(), of_peft(rho)
    adapter = attach(model, config_of(alpha=6.0))
    ranks = start_from_data(model, [X[:20], X[20:]], rho=rho)
    assert ranks == {path: len(value) for path, value in expected.items()}
    assert rho == 1 or len({*ranks.values()}) > 1
    for path, value in expected.items():
        cosines = (adapter.factors[f"{path}.A"].T * value.float()).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(len(value)), rtol=0, atol=1e-3)
        assert adapter.scale_of(path) == pytest.approx(6.0 / 3)
    torch.testing.assert_close(model(X), Network()(X))  # B is zero


def corda_of_peft(method, monkeypatch):
    """PEFT's start, the part of the weight (out, in) of every target, at the scale 2."""
    # PEFT imports a decorator from a package that it does not require
    monkeypatch.setitem(sys.modules, "attr", dataclasses)
    from peft.tuners.lora.corda import preprocess_corda

    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=list(TARGETS),
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=method),
    )
    model = Network()
    preprocess_corda(model, config, run_model=lambda: model(X))
    wrapped = peft.get_peft_model(model, config)
    return {path: wrapped.get_submodule(f"base_model.model.{path}").get_delta_weight("default") for path in TARGETS}


@pytest.mark.parametrize("method, part", [("ipm", "first"), ("kpm", "last")])
def test_corda_has_the_part_of_the_weight_of_peft(method, part, monkeypatch):
    model = Network()
    adapter = attach(model, config_of("corda", alpha=6.0))
    start_from_data(model, X, part=part)
    for path, expected in corda_of_peft(method, monkeypatch).items():
        assert expected.abs().max() > 1e-3
        left, right = adapter.factors[f"{path}.A_0"], adapter.factors[f"{path}.B_0"]
        torch.testing.assert_close(2.0 * (left @ right).T, expected, rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(model(X), Network()(X), rtol=0, atol=0)  # the changes of A and B are zero


def test_tokens_outside_of_the_mask_do_not_count():
    x = X.reshape(8, 8, 12)
    mask = torch.ones(8, 8, dtype=torch.long)
    mask[:, 5:] = 0
    noise = torch.where(mask[..., None] > 0, x, torch.full_like(x, 50.0) * torch.randn(8, 8, 12))
    adapters = []
    for batch in ({"x": noise, "attention_mask": mask}, x[:, :5].reshape(40, 12)):
        model = Network()
        adapters.append(attach(model, config_of()))
        start_from_data(model, [batch])
    torch.testing.assert_close(adapters[0].factors["third.A"].abs(), adapters[1].factors["third.A"].abs())


def test_without_its_data_it_does_not_run():
    model = Network().train()
    adapter = attach(model, config_of())
    message = r"init='eva' starts from data: call metalora.start_from_data\(model, batches\)"
    uses = (
        lambda: model(X),
        lambda: fit(model, adapter, lambda k: model(X).sum(), TrainConfig(steps=1)),
        lambda: save(model, "nowhere"),
    )
    for use in uses:
        with pytest.raises(ValueError, match=message):
            use()
    with adapter.disabled():
        assert torch.equal(model(X), Network()(X))
    start_from_data(model, X)
    model(X).sum().backward()
    detach(model)
    assert model(X).requires_grad


KEPT = {"eva": ("eva", {}), "eva, other ranks": ("eva", dict(rho=2.0)), "corda": ("corda", {})}


@pytest.mark.parametrize("name", KEPT)
def test_files_and_exports_keep_it(name, tmp_path):
    init, options = KEPT[name]
    model = Network()
    adapter = attach(model, config_of(init, alpha=6.0))
    start_from_data(model, X, **options)
    for factor in adapter.learned.values():
        factor.data += 0.1
    assert (model(X) - Network()(X)).abs().max() > 0.1
    save(model, tmp_path / "adapter")
    loaded = Network()
    load(loaded, tmp_path / "adapter")
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(copy.deepcopy(model)(X), model(X))
    adapter.export_lora(tmp_path / "lora")
    torch.testing.assert_close(peft.PeftModel.from_pretrained(Network(), tmp_path / "lora")(X), model(X))


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_a_checkpoint_of_training_has_the_start(init):
    model, resumed = Network(), Network()
    adapter, other = attach(model, config_of(init)), attach(resumed, config_of(init))
    start_from_data(model, X)
    for factor in adapter.learned.values():
        factor.data += 0.1
    TrainedParameters(other, None).restore(TrainedParameters(adapter, None).state())
    assert torch.equal(resumed(X), model(X))


def test_corda_in_peft(tmp_path):
    model = peft.get_peft_model(Network(), mp.TensorNetworkConfig(r=3, target_modules=list(TARGETS), init="corda"))
    start_from_data(model, X)
    for factor in mp.adapter_of(model).learned.values():
        factor.data += 0.1
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(mp.load(Network(), tmp_path)(X), model(X))


def test_in_peft(tmp_path):
    model = peft.get_peft_model(Network(), mp.TensorNetworkConfig(r=3, target_modules=list(TARGETS), init="eva"))
    for use in (lambda: model(X), lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match="init='eva' starts from data"):
            use()
    with pytest.raises(ValueError, match="rho is 2.0, expected 1: PEFT's configuration"):
        start_from_data(model, X, rho=2.0)
    start_from_data(model, X)
    for path, value in of_peft(1.0).items():
        cosines = (mp.adapter_of(model).factors[f"{path}.A"].T * value.float()).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones(len(value)), rtol=0, atol=1e-3)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(mp.load(Network(), tmp_path)(X), model(X))


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("word", ["pissa", "olora"])
def test_a_word_is_the_start_of_its_method(word, method, tmp_path):
    model, other = Network(), Network()
    adapter = attach(model, AdapterConfig(method, rank=3, alpha=3.0, scale="alpha/r", targets=TARGETS, init=word))
    expected = attach(other, AdapterConfig(word, rank=3, alpha=3.0, targets=TARGETS))
    assert adapter.factors.keys() == expected.factors.keys()
    assert all(torch.equal(adapter.factors[key], value) for key, value in expected.factors.items())
    for one in (adapter, expected):
        for factor in one.learned.values():
            factor.data += 0.1
    torch.testing.assert_close(model(X), other(X))
    save(model, tmp_path / "adapter")
    loaded = Network()
    load(loaded, tmp_path / "adapter")
    assert torch.equal(loaded(X), model(X))


REFUSED = {
    "another method": (
        lambda: attach(Network(), AdapterConfig("lotr", 2, targets=TARGETS, init="eva")),
        "a start of lora",
    ),
    "an unknown word": (lambda: attach(Network(), config_of("pisa")), "or one of pissa, olora, eva, corda"),
    "no such adapter": (lambda: start_from_data(Network(), X), "no adapter with init='eva'"),
    "too few inputs": (lambda: started(Network(), X[:3]), "3 inputs of target 'first' for its rank 3"),
    "a rho below one": (lambda: started(Network(), X, rho=0.5), "rho is 0.5, expected at least 1"),
    "a rho for CorDA": (lambda: started(Network(), X, init="corda", rho=2.0), "only EVA shares ranks out"),
    "a part for EVA": (lambda: started(Network(), X, part="last"), "part is 'last', which only CorDA has"),
    "an unknown part": (lambda: started(Network(), X, part="middle"), "expected 'first' or 'last'"),
    "no scale": (lambda: started(Network(), X, init="corda", alpha=-1.0), "CorDA needs a scale above zero"),
    "a convolution": (
        lambda: started(nn.ModuleDict({name: nn.Conv2d(4, 4, 3) for name in TARGETS}), X),
        "target 'first' is a conv2d, expected linear layers",
    ),
}


def started(model, *data, init="eva", alpha=None, **options):
    """Attach an adapter and start it."""
    attach(model, config_of(init, alpha=alpha))
    return start_from_data(model, *data, **options)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    run, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        run()
