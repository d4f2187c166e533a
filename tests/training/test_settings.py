"""Every setting of a training run has the effect that its help text promises."""

import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.config import TrainConfig
from metalora.io.adapter_file import round_as_saved
from metalora.training import gradients
from metalora.training.gradients import average_gradients
from metalora.training.loop import fit
from metalora.training.parameters import TrainedParameters
from metalora.training.schedule import learning_rate_schedule
from support.adapters import randomise

FEATURES = torch.tensor([[0.5, -1.0], [1.5, 0.3]])
X = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 2.0]])


def generated():
    """(model, adapter, step -> loss): a linear layer whose factor c a mapping net makes from two features."""
    model = nn.Sequential(nn.Linear(3, 4))
    condition = ConditionConfig(source="tensor", feature_size=2, hidden=5)
    adapter = attach(model, AdapterConfig("metalora-cp", 2, targets=("0",), condition=condition))
    randomise(adapter)
    return model, adapter, lambda k: model(X, condition=adapter.condition(FEATURES)).square().sum()


def largest_moves(before, parameters):
    """The largest change of each parameter, by name."""
    return {name: float((value.detach() - before[name]).abs().max()) for name, value in parameters}


# ---- learning rates: the first step of Adam moves a number by its rate, whatever the size of its gradient -----------
RATES = {
    "defaults": ({}, {"mapping": 0.2, "A": 1.0, "c": 1.0, "B": 1.0}),
    "mapping_lr_ratio": ({"mapping_lr_ratio": 0.05}, {"mapping": 0.05, "A": 1.0, "c": 1.0, "B": 1.0}),
    "factor_lr_ratio": ({"factor_lr_ratio": {"B": 4.0}}, {"mapping": 0.2, "A": 1.0, "c": 1.0, "B": 4.0}),
}


@pytest.mark.parametrize("settings, ratios", RATES.values(), ids=RATES)
def test_factors_and_the_mapping_net_have_their_own_learning_rates(settings, ratios):
    model, adapter, step_loss = generated()
    before = {name: value.detach().clone() for name, value in adapter.named_parameters()}
    fit(model, adapter, step_loss, TrainConfig(steps=1, lr=1e-3, schedule="constant", **settings))
    factors = {id(value): key.removeprefix("0.") for key, value in adapter.learned.items()}
    groups = {name: factors.get(id(value), "mapping") for name, value in adapter.named_parameters()}
    assert set(groups.values()) == set(ratios)
    for name, move in largest_moves(before, adapter.named_parameters()).items():
        assert move == pytest.approx(1e-3 * ratios[groups[name]], rel=1e-3), name


def test_a_further_module_has_the_rate_of_the_factors():
    model, adapter, step_loss = generated()
    head = nn.Linear(4, 1)
    before = {name: value.detach().clone() for name, value in head.named_parameters()}
    condition = adapter.condition(FEATURES).detach()
    fit(
        model, adapter, lambda k: head(model(X, condition=condition)).sum() + step_loss(k),
        TrainConfig(steps=1, lr=1e-3, schedule="constant"), extra_module=head,
    )  # fmt: skip
    moves = largest_moves(before, head.named_parameters())
    assert moves == pytest.approx({"weight": 1e-3, "bias": 1e-3}, rel=1e-3)


def rates(**settings):
    """The learning rate of every step, as a multiple of the peak, of two groups with peaks 1 and 0.25."""
    config = TrainConfig(**settings)
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.25)]
    optimizer = torch.optim.AdamW(groups)
    schedule = learning_rate_schedule(optimizer, config)
    peak_shares = []
    for _ in range(config.steps):
        first, second = schedule.get_last_lr()
        assert second == pytest.approx(first / 4, abs=1e-6)
        peak_shares.append(first)
        optimizer.step()
        schedule.step()
    return peak_shares


@pytest.mark.parametrize("warmup", [0.2, 0.5, 0.8])
def test_the_warm_up_is_a_share_of_the_steps(warmup):
    linear = rates(steps=10, schedule="linear", warmup=warmup)
    rising = round(10 * warmup)
    expected = [min((k + 1) / rising, (10 - k) / (10 - rising)) for k in range(10)]
    assert linear == pytest.approx(expected)
    onecycle = rates(steps=100, schedule="onecycle", warmup=warmup)
    assert abs(onecycle.index(max(onecycle)) - 100 * warmup) <= 1


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_a_cosine_schedule_is_that_of_pytorch_behind_the_warm_up(warmup):
    found = rates(steps=20, schedule="cosine", warmup=warmup)
    rising = max(1, round(20 * warmup))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20 - rising)
    expected = [(k + 1) / rising for k in range(rising)]
    for _ in range(20 - rising):
        expected.append(annealing.get_last_lr()[0])
        optimizer.step()
        annealing.step()
    assert found == pytest.approx(expected)


def test_a_constant_schedule_has_no_warm_up():
    assert rates(steps=5, schedule="constant", warmup=0.5) == [1.0] * 5


# ---- gradients ------------------------------------------------------------------------------------------------------
def gradient_norm(adapter):
    return float(torch.cat([value.grad.flatten() for value in adapter.parameters()]).norm())


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e9])
def test_a_gradient_is_scaled_down_to_the_clip_norm(clip):
    model, adapter, step_loss = generated()
    norms = []
    fit(
        model, adapter, step_loss, TrainConfig(steps=1, lr=1e-3, clip=clip),
        on_step=lambda step, loss: norms.append(gradient_norm(adapter)),
    )  # fmt: skip
    model, adapter, step_loss = generated()
    torch.manual_seed(0)
    assert norms[0] > 0
    if clip == 0.5:
        assert norms[0] == pytest.approx(0.5, rel=1e-4)
    else:
        assert norms[0] > 2


def test_weight_decay_shrinks_every_parameter_that_is_trained():
    model, adapter, _ = generated()
    head = nn.Linear(4, 1)
    before = [value.detach().clone() for value in (*adapter.parameters(), *head.parameters())]

    def no_gradient(k):
        return 0 * sum(value.sum() for value in (*adapter.parameters(), *head.parameters()))

    config = TrainConfig(steps=1, lr=0.1, mapping_lr_ratio=1.0, weight_decay=0.5, schedule="constant")
    fit(model, adapter, no_gradient, config, extra_module=head)
    for value, start in zip((*adapter.parameters(), *head.parameters()), before, strict=True):
        torch.testing.assert_close(value.detach(), start * (1 - 0.1 * 0.5))


def test_gradients_of_several_processes_are_averaged_and_frozen_parameters_get_none(monkeypatch):
    """The second process has the gradients 3, 5 and none where this one has 1, none and none."""
    first, second, unused, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    frozen.requires_grad_(False)
    first.grad = torch.ones(2)
    others = torch.tensor([3.0, 3.0, 5.0, 5.0, 0.0, 0.0, 1.0, 1.0, 0.0])  # then which gradients there are
    monkeypatch.setattr(gradients, "process_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(others))
    average_gradients([first, frozen, second, unused])
    assert first.grad.tolist() == [2.0, 2.0] and second.grad.tolist() == [2.5, 2.5]
    assert frozen.grad is None and unused.grad is None  # AdamW leaves both out, as in one process


# ---- random numbers, precision, rounding ----------------------------------------------------------------------------
def draws(seed, steps=3, accumulate=1):
    """The random number that the loss function of every micro-step draws."""
    model, adapter, step_loss = generated()
    drawn = []

    def drawing(k):
        drawn.append(float(torch.rand(())))
        return step_loss(k)

    fit(model, adapter, drawing, TrainConfig(steps=steps, accumulate=accumulate), seed=seed)
    return drawn


def test_random_numbers_differ_between_steps_and_seeds_and_repeat_with_the_seed():
    numbers = draws(0) + draws(1) + draws(2, steps=1, accumulate=3)
    assert len(set(numbers)) == 9
    assert draws(1) == numbers[3:6]


def test_the_loss_is_made_under_autocast_of_the_precision_and_two_trainings_may_differ():
    seen = []
    for precision in ("no", "bf16", "fp16", "no"):
        model, adapter, step_loss = generated()

        def observed(k, model=model, adapter=adapter, step_loss=step_loss):
            seen.append(model(X, condition=adapter.condition(FEATURES)).dtype)
            return step_loss(k)

        fit(model, adapter, observed, TrainConfig(steps=1, mixed_precision=precision))
    assert seen == [torch.float32, torch.bfloat16, torch.float16, torch.float32]


def test_in_float16_the_loss_is_scaled_and_small_gradients_arrive():
    """A gradient g of 2e-8 is zero in float16 without the scale; Adam's first step is the rate times g / (g + 1e-8)."""
    head = nn.Linear(1, 1, bias=False)
    start = head.weight.item()
    config = TrainConfig(steps=1, lr=0.01, weight_decay=0.0, schedule="constant", mixed_precision="fp16")
    fit(head, None, lambda k: 2e-8 * head(torch.ones(1, 1)).float().sum(), config, extra_module=head)
    assert start - head.weight.item() == pytest.approx(0.01 * 2 / 3, rel=1e-2)


def test_a_training_in_float16_continues_with_its_scale(tmp_path):
    """The first steps overflow and halve the scale; a run that were to begin with the first scale would repeat them."""

    def losses(*steps):
        torch.manual_seed(0)
        head = nn.Linear(3, 4)
        for stop in steps:
            found = fit(
                head, None, lambda k: head(X).float().square().sum(), config, extra_module=head,
                checkpoint=tmp_path / f"{len(steps)}.pt", on_step=lambda step, loss, stop=stop: step == stop,
            )  # fmt: skip
        return found, head.weight

    config = TrainConfig(steps=8, lr=0.01, mixed_precision="fp16", checkpoint_every=1)
    (whole, expected), (resumed, weight) = losses(7), losses(4, 7)
    assert resumed == whole and torch.equal(weight, expected)
    assert whole[0] == whole[1] and whole[-1] < whole[0]  # the first step overflows


def test_an_adapter_is_rounded_to_what_its_file_holds():
    _, adapter, _ = generated()
    adapter.calibrate(torch.randn(5, 2))
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    round_as_saved(adapter, torch.float16)
    changed = 0
    for name, value in adapter.state_dict().items():
        assert torch.equal(value, before[name].half().to(value.dtype)), name
        changed += not torch.equal(value, before[name])
    assert changed == len(before)


def test_frozen_factors_are_not_rounded():
    model = nn.Sequential(nn.Linear(3, 4))
    adapter = attach(model, AdapterConfig("vera", 5, targets=("0",)))
    frozen = {key: copy.deepcopy(value) for key, value in adapter.factors.items() if key not in adapter.learned}
    round_as_saved(adapter, torch.float16)
    assert frozen and all(torch.equal(adapter.factors[key], value) for key, value in frozen.items())


# ---- what is trained ------------------------------------------------------------------------------------------------
def test_the_backbone_is_in_evaluation_mode_and_the_adapter_in_training_mode():
    model, adapter, step_loss = generated()
    model.append(nn.Dropout(0.9))
    model.train()
    adapter.eval()
    modes = []
    fit(
        model, adapter, lambda k: modes.append((model[1].training, adapter.training)) or step_loss(k),
        TrainConfig(steps=1),
    )  # fmt: skip
    assert modes == [(False, True)] and not model[1].training and not adapter.training


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing to train: there is no adapter"):
        fit(nn.Linear(2, 2), None, lambda k: torch.zeros(()), TrainConfig(steps=1))


def test_parameters_of_a_model_that_holds_its_adapter_are_trained_once():
    model, adapter, _ = generated()
    everything = nn.ModuleList([model, adapter, nn.Linear(4, 1)])
    trained = TrainedParameters(adapter, everything)
    assert sorted(trained.extra) == ["2.bias", "2.weight"]
    ids = [id(value) for value in trained.parameters]
    assert len(set(ids)) == len(ids) == len(list(adapter.parameters())) + 2
