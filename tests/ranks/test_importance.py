"""Sweeps of attached adapters by importance to the loss: what is recorded, what stays, and the schedule."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, TrainConfig, attach, fit, sweep
from metalora.config import RankScheduleConfig
from metalora.ranks.schedule import RankSchedule
from metalora.ranks.sensitivity import LossSensitivity
from support.adapters import randomise
from support.resume import resumes_to_the_same_bits
from support.sweeps import all_deltas, call_options
from support.transformer import WIDTH, attach_to_transformer, small_transformer

METHODS = {
    "metatt-4d": dict(method="metatt-4d", rank=3),
    "metatt-4d, one width, other order": dict(method="metatt-4d", rank=2, order=("in", "proj", "layer", "out")),
    "metatt-4+1d": dict(method="metatt-4+1d", rank=3, tasks=3, targets=("query", "up")),
    "lora": dict(method="lora", rank=2, alpha=3.0),
    "fact-tk": dict(method="fact-tk", rank=2, targets=("query",)),
    "metalora-cp": dict(method="metalora-cp", rank=4, targets=("query", "up"), generated=()),
}


def batch_of(seed):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(net, adapter, seed):
    return net(batch_of(seed), **call_options(adapter)).square().mean()


def with_sensitivity(net, adapter, batches=3):
    sensitivity = LossSensitivity(net)
    for seed in range(batches):
        net.zero_grad()
        loss_of(net, adapter, seed).backward()
        sensitivity.record()
    net.zero_grad()
    return sensitivity


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_the_gradients_at_all_bonds_of_a_group_agree_with_the_loss_of_a_scaled_update(options):
    """M = (1 + h) I on any bond is the whole network times 1 + h."""
    net, adapter = attach_to_transformer(**options)
    sensitivity = with_sensitivity(net, adapter, batches=1)
    for number, group in enumerate(sensitivity.groups):
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for key in group.keys[0]:
                    adapter.factors[key].mul_(1 + step)
                losses.append(float(loss_of(net, adapter, 0)))
                for key in group.keys[0]:
                    adapter.factors[key].div_(1 + step)
        for matrices in sensitivity.of_group(number).values():
            assert float(matrices[0].trace()) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("state", ("reset", "carry"))
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_a_sweep_by_importance(options, state):
    """Without truncation no update changes; with it, the loss still runs and trains."""
    net, adapter = attach_to_transformer(**options)
    before = all_deltas(adapter)
    report = sweep(net, importance=with_sensitivity(net, adapter), state=state)
    assert report.before == report.after
    for path, delta in all_deltas(adapter).items():
        torch.testing.assert_close(delta, before[path], rtol=1e-9, atol=1e-9)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-3))
    loss_of(net, adapter, 0).backward()
    optimizer.step()
    report = sweep(net, rank=1, importance=with_sensitivity(net, adapter), state=state, optimizer=optimizer)
    assert set(report.after.values()) == {1} and report.error > 0
    loss_of(net, adapter, 0).backward()
    optimizer.step()


@pytest.mark.parametrize("by_importance", (False, True))
def test_the_update_keeps_the_singular_value_that_the_inputs_reach(by_importance):
    """Delta W = 5 u1 v1' + 0.5 u2 v2', and no input has a part along u1."""
    net = nn.Sequential(nn.Linear(6, 5).double())
    adapter = attach(net, AdapterConfig("lora", 2, targets="0"))
    u, v = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q for n in (6, 5))
    with torch.no_grad():
        adapter.factors["0.A"].copy_(u[:, :2] * torch.tensor([5.0, 0.5]))
        adapter.factors["0.B"].copy_(v[:, :2].mT)
    x = torch.randn(20, 5, dtype=torch.float64) @ u[:, 1:].mT
    outputs = net(x).detach()
    sensitivity = LossSensitivity(net)
    net(x).square().sum().backward()
    sensitivity.record()
    sweep(net, rank=1, importance=sensitivity if by_importance else None)
    error = float((net(x) - outputs).detach().norm())
    assert (error < 1e-10) == by_importance and (error > 1) != by_importance


# ---- what cannot be -------------------------------------------------------------------------------------------------
def test_refusals():
    net, adapter = attach_to_transformer(rank=3, targets=("query",))
    sensitivity = LossSensitivity(net)
    with pytest.raises(ValueError, match="no factor has a gradient"):
        sensitivity.record()
    with pytest.raises(ValueError, match="nothing is recorded since the last sweep"):
        sweep(net, rank=1, importance=sensitivity)
    sensitivity = with_sensitivity(net, adapter)
    other, _ = attach_to_transformer(rank=3, targets=("query",))
    with pytest.raises(ValueError, match="recorded for another adapter"):
        sweep(other, rank=1, importance=sensitivity)
    sweep(net)  # the ranks stay, but the bases change
    with pytest.raises(ValueError, match="nothing is recorded since the last sweep"):
        sweep(net, rank=1, importance=sensitivity)
    with pytest.raises(ValueError, match="batches is 0, expected at least 1"):
        LossSensitivity(net, batches=0)
    with pytest.raises(ValueError, match="Transformer has no adapter"):
        LossSensitivity(small_transformer())
    ring, _ = attach_to_transformer(method="metalora-tr", rank=2, targets=("query",), generated=())
    with pytest.raises(ValueError, match="a ring has no singular values"):
        LossSensitivity(ring)


# ---- while it trains ------------------------------------------------------------------------------------------------
SCHEDULE = RankScheduleConfig(steps=(4, 8), ranks=(3, 2), importance="sensitivity", importance_steps=3)
CONFIG = TrainConfig(steps=10, lr=2e-2, checkpoint_every=100, rank_schedule=SCHEDULE)


def made():
    """(model, adapter, step -> loss) of a regression."""
    net = small_transformer().double()
    adapter = attach(net, AdapterConfig("metatt-4d", 4, targets=("query", "up"), init="ze-no-no-no"))
    return net, adapter, lambda step: (net(batch_of(step % 3)) - 1.0).square().mean()


def numbers(adapter):
    return {key: value.detach().clone() for key, value in adapter.factors.items()}


def test_a_schedule_records_the_last_steps_before_each_sweep():
    net, adapter, step_loss = made()
    randomise(adapter)
    schedule = RankSchedule(net, SCHEDULE)
    counts = []
    for step in range(1, 10):
        net.zero_grad()
        step_loss(step).backward()
        schedule.after(step, None)
        counts.append(len(schedule.sensitivity.recorded))
    assert counts == [0, 1, 2, 3, 3, 1, 2, 3, 3]  # a sweep uses them up: the next ones replace them
    assert set(adapter.config.rank.values()) == {2}


def test_in_the_loop_and_after_an_interruption(tmp_path):
    net, adapter, step_loss = made()
    losses = fit(net, adapter, step_loss, replace(CONFIG, steps=40))
    assert set(adapter.config.rank.values()) == {2} and losses[-1] < losses[0]
    for stop_step in (5, 7):  # after a sweep without a new batch, and with some
        resumes_to_the_same_bits(made, numbers, CONFIG, stop_step, tmp_path / str(stop_step))


def test_a_schedule_that_cannot_be():
    net, _, _ = made()
    with pytest.raises(ValueError, match="mode 'paper' keeps the largest values"):
        RankSchedule(net, replace(SCHEDULE, mode="paper"))
