"""Sweeps over attached adapters: what is rounded, what stays, and what the optimiser keeps."""

import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, load, merge, save, sweep
from support.adapters import randomise
from support.sweeps import CONSTANT, GENERATED, all_deltas, call_options, training_step
from support.transformer import WIDTH, attach_to_transformer, small_transformer

CHAINS = {
    "4d": dict(method="metatt-4d", rank=3),
    "4d one width": dict(method="metatt-4d", rank=3, targets=("query", "qkv")),
    "4d chunk": dict(method="metatt-4d", rank=3, targets=("query", "up", "down"), widths="chunk"),
    "4d reordered": dict(method="metatt-4d", rank=2, order=("in", "proj", "layer", "out")),
    "5d": dict(method="metatt-5d", rank={"r1": 3, "r2": 3, "r3": 3, "r4": 2}, targets=("query", "key", "up")),
    "4+1d": dict(method="metatt-4+1d", rank=3, tasks=3, targets=("query", "up")),
    "4+1d generated": dict(
        method="metatt-4+1d", rank=3, targets=("query", "up"), generated=("G3",), condition=GENERATED
    ),
    "lora": dict(method="lora", rank=2),
    "square": dict(method="metalora-square", rank=3, targets=("query", "up")),
}


@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
@pytest.mark.parametrize("mode", ("round", "paper"))
@pytest.mark.parametrize("options", CHAINS.values(), ids=CHAINS)
def test_a_sweep_without_truncation_leaves_every_delta(options, mode, gauge):
    net, adapter = attach_to_transformer(**options)
    before, shapes = all_deltas(adapter), {key: value.shape for key, value in adapter.factors.items()}
    old = {key: value.clone() for key, value in adapter.factors.items()}
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    want = net(x, **call_options(adapter))
    report = sweep(net, mode=mode, gauge=gauge)
    assert report.before == report.after and report.params_before == report.params_after == adapter.num_params()
    assert {key: value.shape for key, value in adapter.factors.items()} == shapes and report.error < 1e-7
    for path, value in all_deltas(adapter).items():
        torch.testing.assert_close(value, before[path], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(net(x, **call_options(adapter)), want, rtol=1e-9, atol=1e-9)
    changed = {key for key, value in adapter.factors.items() if not torch.equal(value, old[key])}
    assert changed == {key for key in old if not (adapter.conditional and key == "G3")}


@pytest.mark.parametrize("mode", ("round", "paper"))
@pytest.mark.parametrize("options", CHAINS.values(), ids=CHAINS)
def test_truncated(options, mode, tmp_path):
    """Smaller factors, a model that still runs, merges and saves; a bond beside a generated factor stays."""
    net, adapter = attach_to_transformer(**options)
    report = sweep(net, rank=1, mode=mode)
    fixed = {"r2", "r3"} if adapter.conditional else set()
    assert report.after == {bond: size if bond in fixed else 1 for bond, size in report.before.items()}
    assert report.params_after == adapter.num_params() < report.params_before and 0 < report.error < 1
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    want = net(x, **call_options(adapter))
    want.sum().backward()
    assert all(p.grad is not None for p in adapter.parameters())
    save(net, tmp_path / "a")
    again = load(small_transformer(), tmp_path / "a")
    torch.testing.assert_close(again.model(x, **call_options(again)), want, rtol=0, atol=0)
    condition = call_options(adapter).get("condition", adapter.task(1) if adapter.config.tasks > 1 else None)
    merge(net, condition)
    torch.testing.assert_close(net(x), want, rtol=1e-10, atol=1e-10)


def test_the_error_is_that_of_all_deltas_together():
    net, adapter = attach_to_transformer(rank=4, targets=("query",))
    before = all_deltas(adapter)
    errors = []
    for rank in (3, 2, 1):
        twin = copy.deepcopy(net)
        report = sweep(twin, rank=rank)
        after = all_deltas(twin.layers[0].attention.query.owner[0])
        wrong, whole = (
            sum(float((d if other is None else d - other[path]).square().sum()) for path, d in before.items())
            for other in (after, None)
        )
        assert report.error == pytest.approx((wrong / whole) ** 0.5, rel=1e-6)
        errors.append(report.error)
    assert errors == sorted(errors)


def test_a_tolerance_and_a_budget():
    net, adapter = attach_to_transformer(rank=4, targets=("query",))
    assert sweep(copy.deepcopy(net), tolerance=0.2).error <= 0.2
    for budget in (40, 60, adapter.num_params()):
        report = sweep(copy.deepcopy(net), budget=budget)
        assert report.params_after <= budget
    assert report.after == report.before


def test_alpha_over_r_keeps_its_delta():
    """A LoRA of rank 4 whose Delta W has rank 2."""
    net = nn.Sequential(nn.Linear(6, 5).double())
    adapter = attach(net, AdapterConfig("lora", 4, alpha=7.0, targets="0"))
    randomise(adapter)
    with torch.no_grad():
        adapter.factors["0.A"][:, 2:], adapter.factors["0.B"][2:] = 0, 0
    before = adapter.delta("0").detach()
    assert sweep(net, rank=2).error < 1e-7
    assert adapter.scale == 3.5 and adapter.config.rank == {"r": 2}
    torch.testing.assert_close(adapter.delta("0").detach(), before, rtol=1e-10, atol=1e-10)


# ---- the optimiser --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ("reset", "carry"))
@pytest.mark.parametrize("options", CHAINS.values(), ids=CHAINS)
def test_the_optimiser_goes_on(options, state):
    net, adapter = attach_to_transformer(**options)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2))
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    training_step(net, adapter, optimizer, x)
    objects = [id(p) for group in optimizer.param_groups for p in group["params"]]
    report = sweep(net, rank=1, optimizer=optimizer, state=state)
    assert report.after != report.before
    swept = {id(p) for key, p in adapter.factors.items() if not (adapter.conditional and key == "G3")}
    for parameter in adapter.parameters():
        kept = optimizer.state.get(parameter, {})
        assert bool(kept) == (state == "carry" or id(parameter) not in swept)
        assert all(kept[name].shape == parameter.shape for name in ("exp_avg", "exp_avg_sq") if name in kept)
        assert all((kept[name] >= 0).all() for name in ("exp_avg_sq",) if name in kept)
    training_step(net, adapter, optimizer, x)
    assert objects == [id(p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("gauge", ("left", "right", "balanced"))
@pytest.mark.parametrize("name", [name for name in CHAINS if "generated" not in name])
def test_a_carried_mean_is_the_gradient_in_the_new_basis(name, gauge):
    net, adapter = attach_to_transformer(**CHAINS[name])
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.0, betas=(0.0, 0.9))
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    training_step(net, adapter, optimizer, x)
    sweep(net, gauge=gauge, optimizer=optimizer, state="carry")
    net(x, **call_options(adapter)).square().sum().backward()
    for parameter in adapter.parameters():
        scale = parameter.grad.abs().max()
        torch.testing.assert_close(
            optimizer.state[parameter]["exp_avg"] / scale, parameter.grad / scale, rtol=1e-6, atol=1e-6
        )


def test_compiled():
    net, adapter = attach_to_transformer(rank=3, targets=("query", "up"))
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    for rank in (None, 1):
        sweep(net, rank=rank)
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-10, atol=1e-10)


# ---- what cannot be -------------------------------------------------------------------------------------------------
BAD = {
    "an untrained train": (dict(), False, dict(rank=1), "sweep of 'G1' to 'G4': the train is zero"),
    "growing": (dict(), True, dict(rank=4), "rank 4 grows above 3"),
    "one bond growing": (dict(), True, dict(rank={"r2": 4}), "rank 4 of bond 'r2' is not between 1 and 3"),
    "rank zero": (dict(), True, dict(rank=0), "rank 0 of bond 'r1' is not between 1 and 3"),
    "unknown bond": (dict(), True, dict(rank={"r7": 1}), "rank names bond 'r7'"),
    "no chain": (dict(method="multi-lora"), True, dict(rank=1), "the factors of 'multi-lora' are not a chain"),
    "many chains": (dict(method="lora"), True, dict(tolerance=0.1), "the adapter has 3 chains of factors"),
    "a small budget": (dict(), True, dict(budget=5), "a budget of 5 numbers is below"),
}


@pytest.mark.parametrize("options, trained, call, message", BAD.values(), ids=BAD)
def test_refusals_change_nothing(options, trained, call, message):
    net = small_transformer()
    adapter = attach(
        net, AdapterConfig(**(dict(method="metatt-4d", rank=3, targets=("query",), condition=CONSTANT) | options))
    )
    if trained:
        randomise(adapter)
    before = {key: value.clone() for key, value in adapter.factors.items()}
    with pytest.raises(ValueError, match=message):
        sweep(net, **call)
    assert all(torch.equal(value, before[key]) for key, value in adapter.factors.items())


def test_a_merged_adapter_and_none_at_all():
    net, adapter = attach_to_transformer(rank=2, targets=("query",))
    merge(net)
    with pytest.raises(ValueError, match="the adapter is merged"):
        sweep(net, rank=1)
    with pytest.raises(ValueError, match="Transformer has no adapter"):
        sweep(small_transformer())
