"""The training loop: it learns, leaves the backbone alone, and a run that is cut off resumes to the same bits."""

import copy
import signal

import pytest
import torch
import torch.nn.functional as F

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.config import TrainConfig
from metalora.training.loop import fit
from support.adapters import randomise
from support.conv_net import BODY, SOURCES, conv_net, images

STEPS = 6
CONFIG = TrainConfig(steps=STEPS, lr=1e-2, checkpoint_every=100)
torch.manual_seed(0)  # what other modules draw when they are imported must not move the base
BASE = conv_net()


def small_run(dropout=0.2, seed=0, rank=2):
    """(model, adapter, step -> loss); dropout makes the run depend on torch's generator."""
    model = copy.deepcopy(BASE)
    condition = ConditionConfig(**SOURCES["stages"], hidden=5, dropout=dropout, descriptor_dropout=dropout)
    config = AdapterConfig("metalora-cp", rank, targets=BODY, condition=condition, dropout=dropout, seed=seed)
    adapter = attach(model, config, example=images(1))

    def step_loss(step):
        x = torch.randn(8, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(step % 2))
        condition = adapter.condition(x)
        return F.cross_entropy(model(x, condition=condition), torch.arange(8) % 3) + 0.01 * condition.penalty

    return model, adapter, step_loss


def state(adapter):
    return {name: value.clone() for name, value in adapter.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def interrupted_at(number, inner):
    """`inner`, but call `number` of it raises KeyboardInterrupt."""

    def call(*arguments):
        if arguments[0] == number:
            raise KeyboardInterrupt
        return inner(*arguments)

    return call


@pytest.fixture(scope="module")
def uninterrupted():
    """Six steps in one go: losses and final state."""
    model, adapter, step_loss = small_run()
    return fit(model, adapter, step_loss, CONFIG, seed=3), state(adapter)


def test_the_loss_falls_and_the_backbone_keeps_its_bits():
    model, adapter, step_loss = small_run(dropout=0.0)
    base = {name: value.clone() for name, value in BASE.state_dict().items()}
    before = state(adapter)
    seen = []
    losses = fit(model, adapter, step_loss, TrainConfig(steps=40, lr=2e-2), on_step=lambda *step: seen.append(step))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4]) and seen == list(enumerate(losses))
    assert any(not torch.equal(value, before[name]) for name, value in adapter.state_dict().items())
    assert not any(module.training for module in model.modules())
    plain_state = {name.replace(".base.", "."): value for name, value in model.state_dict().items()}
    assert "1.running_mean" in base
    assert_same(base, {name: plain_state[name] for name in base})


def test_every_factor_and_the_mapping_net_move():
    model, adapter, step_loss = small_run(dropout=0.0)
    before = {name: value.detach().clone() for name, value in adapter.named_parameters()}
    fit(model, adapter, step_loss, CONFIG)
    for name, value in adapter.named_parameters():
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("schedule", ["onecycle", "constant"])
def test_the_learning_rates_follow_the_schedule(schedule):
    """Weight decay alone (a loss without gradient) shrinks a factor by 1 - rate at every step."""
    model, adapter, _ = small_run(dropout=0.0)
    randomise(adapter)
    config = TrainConfig(steps=5, lr=0.1, weight_decay=1.0, schedule=schedule, warmup=0.5)
    key = f"{BODY[0]}.A"
    sizes = [float(adapter.factors[key].detach().norm())]
    fit(model, adapter, lambda step: 0 * sum(p.sum() for p in adapter.parameters()), config,
        on_step=lambda *step: sizes.append(float(adapter.factors[key].detach().norm())))  # fmt: skip
    rates = [1 - b / a for a, b in zip(sizes, sizes[1:], strict=False)]
    if schedule == "constant":
        assert all(abs(rate - 0.1) < 1e-9 for rate in rates)
    else:
        assert rates[0] < rates[1] < rates[2] + 1e-9 and rates[3] > rates[4] and 0.09 < max(rates) < 0.1 + 1e-9


def test_a_run_with_frozen_factors_resumes_to_the_same_bits(tmp_path):
    def vera():
        model = copy.deepcopy(BASE)
        adapter = attach(model, AdapterConfig("vera", 5, targets=BODY))
        return model, adapter, lambda step: model(torch.ones(1, 3, 9, 9, dtype=torch.float64) * (step + 1)).sum()

    model, adapter, step_loss = vera()
    losses, want = fit(model, adapter, step_loss, CONFIG, seed=3), state(adapter)
    model, adapter, step_loss = vera()
    with pytest.raises(KeyboardInterrupt):
        fit(model, adapter, interrupted_at(3, step_loss), CONFIG, seed=3, checkpoint=tmp_path / "run.pt")
    model, adapter, step_loss = vera()
    assert fit(model, adapter, step_loss, CONFIG, seed=3, checkpoint=tmp_path / "run.pt") == losses
    assert_same(state(adapter), want)


@pytest.mark.parametrize("where", ["step_loss", "on_step"])
@pytest.mark.parametrize("step", [0, 3, 5])
def test_an_interrupted_run_resumes_to_the_same_bits(where, step, uninterrupted, tmp_path):
    model, adapter, step_loss = small_run()
    path = tmp_path / "folder" / "run.pt"
    callbacks = {"step_loss": step_loss, "on_step": lambda step, loss: None}
    callbacks[where] = interrupted_at(step, callbacks[where])
    with pytest.raises(KeyboardInterrupt):
        fit(model, adapter, callbacks["step_loss"], CONFIG, seed=3, checkpoint=path, on_step=callbacks["on_step"])
    assert path.exists() and [file.name for file in path.parent.iterdir()] == ["run.pt"]
    model, adapter, step_loss = small_run()
    steps = []
    torch.rand(7)
    losses = fit(model, adapter, step_loss, CONFIG, seed=3, checkpoint=path, on_step=lambda k, loss: steps.append(k))
    assert steps == list(range(step + (where == "on_step"), STEPS))
    assert losses == uninterrupted[0]
    assert_same(state(adapter), uninterrupted[1])


def test_a_killed_run_goes_on_from_its_last_checkpoint(uninterrupted, tmp_path):
    """No KeyboardInterrupt is seen by a killed process: the checkpoint of step 4 (every 2) is what is left."""
    path = tmp_path / "run.pt"
    config = TrainConfig(steps=STEPS, lr=1e-2, checkpoint_every=2)
    model, adapter, step_loss = small_run()

    def killed(step):
        if step == 5:
            raise SystemExit
        return step_loss(step)

    with pytest.raises(SystemExit):
        fit(model, adapter, killed, config, seed=3, checkpoint=path)
    model, adapter, step_loss = small_run()
    steps = []
    losses = fit(model, adapter, step_loss, config, seed=3, checkpoint=path, on_step=lambda k, loss: steps.append(k))
    assert steps == [4, 5] and losses == uninterrupted[0]
    assert_same(state(adapter), uninterrupted[1])


def test_a_finished_run_is_not_run_again(uninterrupted, tmp_path):
    path = tmp_path / "run.pt"
    config = TrainConfig(steps=STEPS, lr=1e-2, checkpoint_every=STEPS)
    for step_loss in (None, lambda step: pytest.fail("a finished step ran again")):
        model, adapter, default_loss = small_run()
        assert fit(model, adapter, step_loss or default_loss, config, seed=3, checkpoint=path) == uninterrupted[0]
        assert_same(state(adapter), uninterrupted[1])


@pytest.mark.parametrize("call", [1, 3])
def test_ctrl_c_inside_the_optimizer_waits_for_the_step_and_resumes_to_the_same_bits(
    call, uninterrupted, tmp_path, monkeypatch
):
    path = tmp_path / "run.pt"
    model, adapter, step_loss = small_run()
    plain, calls = torch.optim.AdamW.step, []

    def cut(self, *arguments, **options):
        plain(self, *arguments, **options)
        calls.append(self)
        if len(calls) == call + 1:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.optim.AdamW, "step", cut)
        fit(model, adapter, step_loss, CONFIG, seed=3, checkpoint=path)
    model, adapter, step_loss = small_run()
    assert fit(model, adapter, step_loss, CONFIG, seed=3, checkpoint=path) == uninterrupted[0]
    assert_same(state(adapter), uninterrupted[1])


@pytest.fixture
def checkpoint(tmp_path):
    """The checkpoint of a run that was interrupted at step 3."""
    path = tmp_path / "run.pt"
    model, adapter, step_loss = small_run()
    with pytest.raises(KeyboardInterrupt):
        fit(model, adapter, interrupted_at(3, step_loss), CONFIG, seed=3, checkpoint=path)
    return path


DAMAGES = {
    "cut short": lambda content: content[:-200],
    "cut in half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a bit of a number": lambda content: content[:-9000] + bytes([content[-9000] ^ 1]) + content[-8999:],
    "no checkpoint": lambda content: b"PK no",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(damage, checkpoint):
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    model, adapter, step_loss = small_run()
    before = state(adapter)
    with pytest.raises(ValueError, match=r"run\.pt: not a complete checkpoint .*delete it") as error:
        fit(model, adapter, step_loss, CONFIG, seed=3, checkpoint=checkpoint)
    assert "\n" not in str(error.value)
    assert_same(state(adapter), before)


def test_a_torch_file_of_another_kind_is_refused_by_name(checkpoint):
    torch.save({"weights": torch.zeros(2)}, checkpoint)
    model, adapter, step_loss = small_run()
    with pytest.raises(ValueError, match=r"run\.pt"):
        fit(model, adapter, step_loss, CONFIG, seed=3, checkpoint=checkpoint)


OTHER_RUNS = {
    "steps": ({}, TrainConfig(steps=7, lr=1e-2, checkpoint_every=100), 3),
    "rate": ({}, TrainConfig(steps=STEPS, lr=2e-2, checkpoint_every=100), 3),
    "seed": ({}, CONFIG, 4),
    "rank": ({"rank": 3}, CONFIG, 3),
}
OTHER_ADAPTERS = {"dropout": {"dropout": 0.1}, "seed": {"seed": 1}}


@pytest.mark.parametrize("options, config, seed", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused(options, config, seed, checkpoint):
    model, adapter, step_loss = small_run(**options)
    before = state(adapter)
    with pytest.raises(ValueError, match=r"run\.pt: made by another run"):
        fit(model, adapter, step_loss, config, seed=seed, checkpoint=checkpoint)
    assert_same(state(adapter), before)


@pytest.mark.parametrize("options", OTHER_ADAPTERS.values(), ids=OTHER_ADAPTERS)
def test_a_checkpoint_of_another_adapter_of_the_same_size_is_refused(options, checkpoint):
    model, adapter, step_loss = small_run(**options)
    with pytest.raises(ValueError, match=r"run\.pt: made by another run"):
        fit(model, adapter, step_loss, CONFIG, seed=3, checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step():
    model, adapter, step_loss = small_run()
    with pytest.raises(ValueError, match="step 2: the loss is nan; lower the learning rate or check the data"):
        fit(model, adapter, lambda step: step_loss(step) * (float("nan") if step == 2 else 1), CONFIG)
    assert all(torch.isfinite(value).all() for value in adapter.parameters())


def infinite_gradient(value):
    """A loss that is finite and whose gradient is not: that of the square root at zero."""
    return value + (value - value.detach()).sqrt()


BROKEN = {
    "a loss of NaN": (lambda loss: loss * float("nan"), "step 3: the loss is nan"),
    "an infinite loss": (lambda loss: loss + float("inf"), "step 3: the loss is inf"),
    "an infinite gradient": (infinite_gradient, "step 3: a gradient is not finite"),
    "a gradient of NaN": (lambda loss: loss + 0 * (loss - loss.detach()).sqrt(), "step 3: a gradient is not finite"),
}


@pytest.mark.parametrize("clip", (0.0, 1.0))
@pytest.mark.parametrize("broken, message", BROKEN.values(), ids=BROKEN)
def test_what_is_not_finite_stops_the_run_and_keeps_its_last_checkpoint(broken, message, clip, tmp_path):
    config = TrainConfig(steps=STEPS, lr=1e-2, checkpoint_every=1, clip=clip)
    model, adapter, step_loss = small_run()
    with pytest.raises(ValueError, match=message):
        bad = lambda k: broken(step_loss(k)) if k == 3 else step_loss(k)  # noqa: E731
        fit(model, adapter, bad, config, seed=3, checkpoint=tmp_path / "run.pt")
    assert all(torch.isfinite(value).all() for value in adapter.parameters())
    losses = fit(model, adapter, step_loss, config, seed=3, checkpoint=tmp_path / "run.pt")
    resumed = state(adapter)
    model, adapter, step_loss = small_run()
    assert losses == fit(model, adapter, step_loss, config, seed=3)
    assert_same(resumed, state(adapter))


def test_without_a_checkpoint_an_interruption_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, adapter, step_loss = small_run()
    with pytest.raises(KeyboardInterrupt):
        fit(model, adapter, interrupted_at(1, step_loss), CONFIG)
    assert not list(tmp_path.iterdir())


# ---- several batches for one step of the optimiser -------------------------------------------------------------------
def halves(n, size):
    """n examples of a fixed set as the batches of `size` that follow one another in it."""
    model, adapter, _ = small_run(dropout=0.0)
    x = torch.randn(n, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def step_loss(k):
        rows = torch.arange(k * size, (k + 1) * size) % n
        condition = adapter.condition(x[rows])
        return F.cross_entropy(model(x[rows], condition=condition), rows % 3)

    return model, adapter, step_loss


def test_two_half_batches_are_one_full_batch():
    config = TrainConfig(steps=3, lr=1e-2)
    model, full_batches, step_loss = halves(8, 8)
    losses = fit(model, full_batches, step_loss, config)
    model, accumulated, step_loss = halves(8, 4)
    seen = []
    accumulated_losses = fit(
        model, accumulated, lambda k: seen.append(k) or step_loss(k), TrainConfig(steps=3, lr=1e-2, accumulate=2)
    )
    assert seen == [0, 1, 2, 3, 4, 5] and accumulated_losses == pytest.approx(losses, abs=1e-12)
    for name, value in full_batches.state_dict().items():
        torch.testing.assert_close(accumulated.state_dict()[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("micro", [2, 5, 6])
def test_accumulation_that_is_cut_off_resumes_to_the_same_bits(micro, tmp_path):
    config = TrainConfig(steps=4, lr=1e-2, accumulate=3)
    model, adapter, step_loss = small_run()
    losses, end = fit(model, adapter, step_loss, config, seed=3), state(adapter)
    model, adapter, step_loss = small_run()
    with pytest.raises(KeyboardInterrupt):
        fit(model, adapter, interrupted_at(micro, step_loss), config, seed=3, checkpoint=tmp_path / "run.pt")
    model, adapter, step_loss = small_run()
    micros = []
    resumed_losses = fit(
        model, adapter, lambda k: micros.append(k) or step_loss(k), config, seed=3, checkpoint=tmp_path / "run.pt"
    )
    assert micros == list(range(micro // 3 * 3, 12)) and resumed_losses == losses
    assert_same(state(adapter), end)


def test_ranks_fall_after_steps_of_the_optimiser():
    from metalora.config import RankScheduleConfig

    model = conv_net()
    adapter = attach(model, AdapterConfig("lora", 3, targets=BODY[:1], condition=ConditionConfig(scope="constant")))
    ranks = []

    def step_loss(k):
        ranks.append((k, adapter.rank))
        return sum(p.square().sum() for p in adapter.parameters()) + model(images(2)).sum()

    schedule = RankScheduleConfig(steps=(2,), ranks=(1,))
    fit(model, adapter, step_loss, TrainConfig(steps=3, accumulate=2, rank_schedule=schedule))
    assert ranks == [(0, 3), (1, 3), (2, 3), (3, 3), (4, 1), (5, 1)]
