"""A mixture of trained adapters: its gate alone is trained, and a gate that picks one adapter is that adapter."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach, load, mixture, save
from support.adapters import assert_close, randomise

WIDTH = 6
TARGETS = ("0.fc", "1.fc")
STATIC = ConditionConfig(scope="constant")
FEATURES = ConditionConfig(source="tensor", feature_size=WIDTH, hidden=16)
LINEAR = {
    "lora": AdapterConfig("lora", rank=2, alpha=3.0, targets=TARGETS),
    "lora-ranks": AdapterConfig("lora", rank=3, rank_pattern={"1.fc": 1}, targets=TARGETS),
    "metatt": AdapterConfig("metatt-4d", rank=2, alpha=0.5, targets=TARGETS),
    "above full rank": AdapterConfig("vera", rank=WIDTH + 3, targets=TARGETS),
}
CONV = {
    "lora": AdapterConfig("lora", rank=1, targets=("0", "2")),
    "lokr": AdapterConfig("lokr", rank=2, targets=("0", "2")),
}


def linear_net():
    torch.manual_seed(0)
    blocks = [nn.Sequential(OrderedDict(fc=nn.Linear(WIDTH, WIDTH), act=nn.Tanh())) for _ in range(2)]
    return nn.Sequential(*blocks).double().eval()


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 1)).double().eval()


NETS = {"linear": (linear_net, LINEAR, (5, WIDTH)), "conv": (conv_net, CONV, (5, 3, 7, 7))}


def trained_files(base, configs, folder):
    """A file for each adapter, with random numbers in the place of trained ones, and the network with each."""
    networks = []
    for name, config in configs.items():
        network = copy.deepcopy(base)
        randomise(attach(network, config))
        save(network, folder / name)
        networks.append(network)
    return [folder / name for name in configs], networks


@pytest.mark.parametrize("make, configs, shape", NETS.values(), ids=NETS)
def test_a_gate_that_picks_one_adapter_is_that_adapter(make, configs, shape, tmp_path):
    paths, networks = trained_files(make(), configs, tmp_path)
    mixed = make()
    adapter = mixture(mixed, paths, STATIC)
    x = torch.randn(shape, dtype=torch.float64)
    for number, network in enumerate(networks):
        for logits in adapter.learned.values():
            logits.data.fill_(0.0)[number] = 1e3  # a softmax of exactly one and zeros
        assert_close(mixed(x), network(x))
        assert not torch.allclose(mixed(x), make()(x))


@pytest.mark.parametrize("condition", [STATIC, FEATURES], ids=["static", "generated"])
def test_it_starts_as_the_mean_of_the_adapters_and_only_its_gate_is_learned(condition, tmp_path):
    paths, networks = trained_files(linear_net(), LINEAR, tmp_path)
    mixed = linear_net()
    adapter = mixture(mixed, paths, condition)
    example = {} if condition is STATIC else {"condition": adapter.condition(torch.randn(1, WIDTH))}
    for target in TARGETS:
        deltas = [network.get_submodule(target).owner[0].delta(target) for network in networks]
        assert_close(adapter.delta(target, **example), torch.stack(deltas).mean(0))
    assert {key.split(".")[-1] for key in adapter.learned} == {"g"}
    assert adapter.num_params() == sum(p.numel() for p in mixed.parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("condition", [STATIC, FEATURES], ids=["static", "generated"])
def test_a_saved_mixture_needs_no_other_file(condition, dtype, tmp_path):
    paths, _ = trained_files(linear_net(), LINEAR, tmp_path)
    mixed, other = linear_net(), linear_net()
    adapter = mixture(mixed, paths, condition)
    for value in (*adapter.parameters(), *adapter.kept_frozen.values()):  # numbers that float16 holds exactly
        value.data.copy_(torch.randn(value.shape).half())
    save(mixed, tmp_path / "mixture", dtype)
    for path in paths:
        path.unlink()
    loaded = load(other, tmp_path / "mixture")
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    features = torch.randn(4, WIDTH)
    one, two = ({} if condition is STATIC else {"condition": a.condition(features)} for a in (adapter, loaded))
    assert torch.equal(other(x, **two), mixed(x, **one))
    assert loaded.num_params() == adapter.num_params()
    save(other, tmp_path / "again", dtype)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "mixture").read_bytes()


def test_it_learns_which_adapter_is_right_for_an_input(tmp_path):
    configs = {name: AdapterConfig("lora", rank=2, targets="0", seed=seed) for seed, name in enumerate("ab")}
    base = nn.Sequential(nn.Linear(WIDTH, 3))
    paths, networks = trained_files(base, configs, tmp_path)
    torch.manual_seed(1)
    x = torch.randn(2, 200, WIDTH)  # for training, and for the score
    with torch.no_grad():
        outputs = torch.stack([network(x) for network in networks])
    right = torch.where(x[..., :1] > 0, outputs[0], outputs[1])  # each adapter is right for one half
    adapter = mixture(base, paths, FEATURES)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    for _ in range(150):
        loss = (base(x[0], condition=adapter.condition(x[0])) - right[0]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        mixed = base(x[1], condition=adapter.condition(x[1]))
    error = (mixed - right[1]).square().mean()
    others = [*outputs[:, 1], outputs[:, 1].mean(0)]
    assert all(error < 0.5 * (other - right[1]).square().mean() for other in others)


REFUSED = {
    "no files": ([], "0 adapters, expected at least two"),
    "one file": (["lora"], "1 adapters, expected at least two"),
    "no such file": (["lora", "nothing"], "mixture: .*nothing: no such file or folder"),
    "other targets": (["lora", "narrow"], "different targets, such as '1.fc'"),
    "another base": (["lora", "stranger"], "fingerprints differ"),
    "magnitudes": (["lora", "dora"], "dora has magnitudes, which are no part of Delta W"),
    "scaled outputs": (["lora", "film"], "target '0.fc': FeatureWiseLayer scales its outputs"),
    "generated": (
        ["lora", "generated"],
        "makes '0.fc.c' from a condition.*export_lora writes one LoRA that mixture takes",
    ),
}
OTHERS = {
    "lora": LINEAR["lora"],
    "narrow": AdapterConfig("lora", rank=2, targets=TARGETS[:1]),
    "dora": AdapterConfig("dora", rank=2, targets=TARGETS),
    "film": AdapterConfig("film", targets=TARGETS, condition=STATIC),
    "generated": AdapterConfig("metalora-cp", rank=2, targets=TARGETS, condition=FEATURES),
}


@pytest.mark.parametrize("names, message", REFUSED.values(), ids=REFUSED)
def test_what_is_refused_leaves_the_model_as_it_was(names, message, tmp_path):
    model = linear_net()
    trained_files(model, OTHERS, tmp_path)
    stranger = linear_net()
    stranger[0].fc.weight.data.add_(1.0)
    trained_files(stranger, {"stranger": LINEAR["lora"]}, tmp_path)
    with pytest.raises(ValueError, match=message):
        mixture(model, [tmp_path / name for name in names], STATIC)
    assert str(model) == str(linear_net()) and all(p.requires_grad for p in model.parameters())


def test_another_base_is_taken_only_on_request(tmp_path):
    paths, networks = trained_files(linear_net(), {name: LINEAR["lora"] for name in "ab"}, tmp_path)
    other = linear_net()
    other[0].fc.weight.data.add_(1.0)
    with pytest.raises(ValueError, match="fingerprints differ"):
        mixture(other, paths, STATIC)
    adapter = mixture(other, paths, STATIC, check_base=False)
    wanted = torch.stack([network[0].fc.delta(None) for network in networks]).mean(0)
    values = None if not adapter.per_example else adapter.condition(torch.zeros(1, WIDTH)).values
    torch.testing.assert_close(adapter.layers["0.fc"].delta(values), wanted, rtol=1e-6, atol=1e-6)


def test_folders_of_peft_are_mixed_too(tmp_path):
    base = linear_net()
    paths, networks = trained_files(base, {"lora": LINEAR["lora"]}, tmp_path)
    networks[0][0].fc.owner[0].export_lora(tmp_path / "peft")
    adapter = mixture(base, [*paths, tmp_path / "peft"], STATIC)
    x = torch.randn(4, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(base(x), networks[0](x), rtol=1e-6, atol=1e-6)  # a folder is in float32
    assert adapter.config.experts == 2
