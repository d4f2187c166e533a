"""Sweeps over adapters that are not chains: Tucker, rings and CP, declared here or taken from the registry."""

import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, load, merge, save, sweep
from metalora.methods.method import Method
from metalora.methods.registry import METHODS
from metalora.tensornet.formats import cp, ring, tucker
from support.adapters import randomise
from support.conv_net import conv_net, images
from support.sweeps import CONSTANT, GENERATED, all_deltas, call_options, training_step
from support.transformer import WIDTH, attach_to_transformer, small_transformer


def declared(name, factors, replicated_over="", zero="", **options):
    init = {factor: "zeros" if factor == zero else "normal" for factor in factors}
    return Method(name, name, "a test", "", factors, init, "0", replicated_over=replicated_over, **options)


KERNEL = {"H": "kh", "W": "kw", "A": "in", "B": "out"}
DECLARED = {
    "tucker": declared("tucker", tucker("in layer proj out"), zero="core", scale="alpha"),
    "tucker-tasks": declared("tucker-tasks", tucker("in layer task out"), zero="core"),
    "tucker-own": declared("tucker-own", tucker(KERNEL), replicated_over="target", zero="core"),
    "ring": declared("ring", ring("in layer proj out"), zero="G1"),
    "cp": declared("cp", cp("in layer proj out"), zero="G1"),
    "cp-own": declared("cp-own", cp(KERNEL), replicated_over="target", zero="A"),
    "tangle": declared("tangle", {"A": "in r", "B": "r layer", "C": "r s", "D": "s out"}, zero="A"),
}
RANKS = {"r1": 4, "r2": 3, "r3": 2, "r4": 3}
NETWORKS = {
    "tucker": dict(method="tucker", rank=RANKS, targets=("query", "qkv")),
    "tucker, widths": dict(method="tucker", rank=RANKS, targets=("query", "up", "down")),
    "tucker, max_slice": dict(method="tucker", rank=RANKS, targets=("query", "up", "down"), widths="max_slice"),
    "tucker, tasks": dict(method="tucker-tasks", rank=RANKS, targets=("query", "up"), tasks=3),
    "tucker, G2 generated": dict(
        method="tucker", rank=RANKS, targets=("query", "key"), generated=("G2",), condition=GENERATED
    ),
    "ring": dict(method="ring", rank={"r0": 2, "r1": 3, "r2": 3, "r3": 2}, targets=("query", "up")),
    "metalora-tr": dict(method="metalora-tr", rank=3, targets=("query", "up"), generated=()),
    "metalora-tr, constant": dict(method="metalora-tr", rank=3, targets=("query",), condition=CONSTANT),
    "metalora-tr, C generated": dict(method="metalora-tr", rank=3, targets=("query", "up"), condition=GENERATED),
    "cp": dict(method="cp", rank=4, targets=("query", "up")),
    "metalora-cp": dict(method="metalora-cp", rank=4, targets=("query", "up"), generated=()),
}
FIXED = {"tucker, G2 generated": {"r2"}, "metalora-tr, C generated": {"r0", "r2"}}
RINGS = ("ring", "metalora-tr", "metalora-tr, constant")
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, method in DECLARED.items():
        monkeypatch.setitem(METHODS, name, method)


@every_network
@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
def test_a_sweep_without_truncation_leaves_every_delta(name, gauge):
    net, adapter = attach_to_transformer(**NETWORKS[name])
    before, old = all_deltas(adapter), {key: value.clone() for key, value in adapter.factors.items()}
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    want = net(x, **call_options(adapter))
    report = sweep(net, gauge=gauge)
    assert report.before == report.after and report.params_before == report.params_after == adapter.num_params()
    assert report.error < 1e-7
    for path, value in all_deltas(adapter).items():
        torch.testing.assert_close(value, before[path], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net(x, **call_options(adapter)), want, rtol=1e-10, atol=1e-10)
    changed = {key for key, value in adapter.factors.items() if not torch.equal(value, old[key])}
    kept = {key for key in old if adapter.conditional and adapter.layout.params[key].factor in adapter.generated}
    assert changed == set(old) - kept


@every_network
def test_truncated(name, tmp_path):
    """Smaller factors, a model that runs, trains, merges and saves; the bonds of a generated factor stay."""
    net, adapter = attach_to_transformer(**NETWORKS[name])
    report = sweep(net, rank=1)
    fixed = FIXED.get(name, set())
    assert report.after == {bond: size if bond in fixed else 1 for bond, size in report.before.items()}
    assert report.params_after == adapter.num_params() < report.params_before and 0 < report.error < 1
    assert all(value.isfinite().all() for value in adapter.factors.values())
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    want = net(x, **call_options(adapter))
    want.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    save(net, tmp_path / "a")
    again = load(small_transformer(), tmp_path / "a")
    torch.testing.assert_close(again.model(x, **call_options(again)), want, rtol=0, atol=0)
    merge(net, call_options(adapter).get("condition", adapter.task(1) if adapter.config.tasks > 1 else None))
    torch.testing.assert_close(net(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name, bonds", FIXED.items(), ids=FIXED)
def test_a_bond_of_a_generated_factor_cannot_be_named(name, bonds):
    net, adapter = attach_to_transformer(**NETWORKS[name])
    now = sweep(net).before
    assert sweep(net, rank=now).after == now
    for bond in bonds:
        with pytest.raises(ValueError, match=f"bond '{bond}' is that of a generated factor and stays at {now[bond]}"):
            sweep(net, rank={bond: 1})


@pytest.mark.parametrize("name", ("tucker", "ring", "cp"))
def test_the_error_is_that_of_all_deltas_together(name):
    net, adapter = attach_to_transformer(**NETWORKS[name] | dict(targets=("query",), rank=3, clip_rank=True))
    before, errors = all_deltas(adapter), []
    whole = sum(float(delta.square().sum()) for delta in before.values())
    for rank in (2, 1):
        twin = copy.deepcopy(net)
        report = sweep(twin, rank=rank)
        after = all_deltas(twin.layers[0].attention.query.owner[0])
        wrong = sum(float((delta - after[path]).square().sum()) for path, delta in before.items())
        assert report.error == pytest.approx((wrong / whole) ** 0.5, rel=1e-6)
        errors.append(report.error)
    assert errors == sorted(errors)


@pytest.mark.parametrize("method", ("tucker-own", "cp-own"))
def test_a_network_at_every_convolution(method):
    """3 x 3 kernels; the forward of the truncated adapter is the base's with the truncated Delta W added."""
    net = conv_net()
    rank = {"r1": 2, "r2": 3, "r3": 4, "r4": 4} if method == "tucker-own" else 4
    adapter = attach(net, AdapterConfig(method, rank, alpha=3.0, targets=("2.0", "2.2")))
    randomise(adapter)
    before = {path: adapter.delta(path).detach() for path in adapter.targets}
    sweep(net)
    for path, value in before.items():
        torch.testing.assert_close(adapter.delta(path).detach(), value, rtol=1e-10, atol=1e-10)
    report = sweep(net, rank=2)
    assert set(report.after.values()) == {2} and 0 < report.error < 1
    updates, plain = {path: adapter.delta(path).detach() for path in adapter.targets}, conv_net()
    plain.load_state_dict(_base(net, plain))
    with torch.no_grad():
        for path, value in updates.items():
            plain.get_submodule(path).weight.add_(value)
    x = images()
    torch.testing.assert_close(net(x), plain(x), rtol=1e-10, atol=1e-10)


def test_a_rank_that_is_too_large_at_one_target_only():
    """A 1 x 1 kernel beside a 3 x 3: there r3 cannot be above r4; it is filled up with zeros."""
    net = nn.Sequential(nn.Conv2d(8, 6, 3), nn.Conv2d(6, 8, 1)).double()
    rank = {"r1": 3, "r2": 3, "r3": 4, "r4": 2}
    adapter = attach(net, AdapterConfig("tucker-own", rank, targets=("0", "1"), clip_rank=True))
    randomise(adapter)
    before = {path: adapter.delta(path).detach() for path in adapter.targets}
    assert sweep(net).after == rank
    for path, value in before.items():
        torch.testing.assert_close(adapter.delta(path).detach(), value, rtol=1e-10, atol=1e-10)
    assert sweep(net, rank={"r3": 3, "r4": 1}).after == {"r1": 3, "r2": 3, "r3": 3, "r4": 1}
    assert [adapter.factors[f"{path}.core"].shape for path in "01"] == [(3, 3, 3, 1), (1, 1, 3, 1)]


def _base(net, plain):
    values = {key.replace(".base.", "."): value for key, value in net.state_dict().items()}
    return {key: values[key] for key in plain.state_dict()}


@pytest.mark.parametrize("method, factor, axes", [
    ("metalora-cp", "c", (0,)), ("metalora-tr", "C", (0, 1)), ("tucker-flat", "core", (0, 1, 2)),
])  # fmt: skip
def test_alpha_over_r_keeps_a_delta_of_lower_rank(method, factor, axes, monkeypatch):
    """Four of everything, of which two are used: rank two is exact, and the scale alpha / r doubles meanwhile."""
    flat = declared(
        "tucker-flat",
        {"A": "in r1", "B": "out r2", "c": "r3", "core": "r1 r2 r3"},
        replicated_over="target",
        zero="core",
    )
    monkeypatch.setitem(METHODS, "tucker-flat", flat)
    net = nn.Sequential(nn.Linear(9, 8).double())
    options = dict(generated=(), clip_rank=True) if method != "tucker-flat" else dict(clip_rank=True)
    adapter = attach(net, AdapterConfig(method, 4, alpha=7.0, targets="0", **options))
    randomise(adapter)
    with torch.no_grad():
        for axis in axes:
            value = adapter.factors[f"0.{factor}"]
            value.narrow(axis, min(2, value.shape[axis]), max(value.shape[axis] - 2, 0)).zero_()
        if method == "metalora-tr":
            adapter.factors["0.A"][..., 2:] = 0
    before = adapter.delta("0").detach()
    assert sweep(net, rank=2).error < 1e-7
    assert adapter.scale == 3.5
    torch.testing.assert_close(adapter.delta("0").detach(), before, rtol=1e-7, atol=1e-7)


def test_a_tolerance_and_a_budget():
    for name in ("tucker", "ring", "cp"):
        net, adapter = attach_to_transformer(**NETWORKS[name])
        assert sweep(copy.deepcopy(net), tolerance=0.2).error <= 0.2
        for budget in (adapter.num_params() // 2, adapter.num_params()):
            report = sweep(copy.deepcopy(net), budget=budget)
            assert report.params_after <= budget
        assert report.after == report.before


# ---- the optimiser --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, state", [(n, s) for n in NETWORKS for s in ("reset", "carry")[: 1 + (n not in RINGS)]])
def test_the_optimiser_goes_on(name, state):
    net, adapter = attach_to_transformer(**NETWORKS[name])
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2))
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    training_step(net, adapter, optimizer, x)
    objects = [id(p) for group in optimizer.param_groups for p in group["params"]]
    sweep(net, rank=1, optimizer=optimizer, state=state)
    swept = {
        id(p)
        for key, p in adapter.factors.items()
        if not (adapter.conditional and adapter.layout.params[key].factor in adapter.generated)
    }
    for parameter in adapter.parameters():
        kept = optimizer.state.get(parameter, {})
        assert bool(kept) == (state == "carry" or id(parameter) not in swept)
        assert all(kept[name].shape == parameter.shape for name in ("exp_avg", "exp_avg_sq") if name in kept)
        assert all(value.isfinite().all() for value in kept.values() if torch.is_tensor(value))
    training_step(net, adapter, optimizer, x)
    assert objects == [id(p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in RINGS])
def test_a_carried_mean_is_the_gradient_in_the_new_basis(name, gauge):
    net, adapter = attach_to_transformer(**NETWORKS[name])
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.0, betas=(0.0, 0.9))
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    training_step(net, adapter, optimizer, x)
    sweep(net, gauge=gauge, optimizer=optimizer, state="carry")
    optimizer.zero_grad()
    net(x, **call_options(adapter)).square().sum().backward()
    for parameter in adapter.parameters():
        scale = parameter.grad.abs().max()
        mean = optimizer.state[parameter]["exp_avg"]
        torch.testing.assert_close(mean / scale, parameter.grad / scale, rtol=1e-6, atol=1e-6)


def test_a_carried_mean_follows_the_scale():
    """alpha / r rises when a LoRA whose Delta W has rank 2 falls from 4 to 2; its right factor falls, with steeper
    gradients."""
    net = nn.Sequential(nn.Linear(6, 5).double())
    adapter = attach(net, AdapterConfig("lora", 4, alpha=7.0, targets="0"))
    randomise(adapter)
    with torch.no_grad():
        adapter.factors["0.A"][:, 2:], adapter.factors["0.B"][2:] = 0, 0
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.0, betas=(0.0, 0.0))
    x = torch.randn(3, 6, dtype=torch.float64)
    training_step(net, adapter, optimizer, x)
    sweep(net, rank=2, optimizer=optimizer, state="carry")
    net(x).square().sum().backward()
    for parameter in adapter.parameters():
        torch.testing.assert_close(optimizer.state[parameter]["exp_avg"], parameter.grad, rtol=1e-6, atol=1e-6)


# ---- what cannot be -------------------------------------------------------------------------------------------------
BAD = {
    "untrained": (
        dict(method="tucker", rank=2, clip_rank=True), False, dict(rank=1), "sweep of 'G1' to 'core': the tree is zero",
    ),
    "paper": (dict(method="cp", rank=3), True, dict(rank=1, mode="paper"), "'paper' is an algorithm of chains"),
    "a ring's moments": (NETWORKS["ring"], True, dict(rank=1, state="carry"), "use state='reset'"),
    "many": (NETWORKS["metalora-cp"], True, dict(tolerance=0.1), "the adapter has 6 shared bonds of factors"),
    "a small budget": (NETWORKS["ring"], True, dict(budget=5), "a budget of 5 numbers is below"),
    "growing": (NETWORKS["cp"], True, dict(rank=5), "rank 5 grows above 4"),
    "another wiring": (dict(method="tangle", rank=2), True, dict(rank=1), "factors of 'tangle' are not a chain, tree"),
    "generated": (
        dict(method="metalora-cp", rank=3, condition=GENERATED), True, dict(rank=1), "no two neighbouring factors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("options, trained, call, message", BAD.values(), ids=BAD)
def test_refusals_change_nothing(options, trained, call, message):
    net = small_transformer()
    adapter = attach(net, AdapterConfig(**(dict(targets=("query",)) | options)))
    if trained:
        randomise(adapter)
    before = {key: value.clone() for key, value in adapter.factors.items()}
    with pytest.raises(ValueError, match=message):
        sweep(net, **call)
    assert all(torch.equal(value, before[key]) for key, value in adapter.factors.items())
