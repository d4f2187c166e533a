"""Two-site DMRG while an adapter trains: what is trained, what is frozen, which ranks it finds, and restarts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, TrainConfig, attach, fit
from metalora.config import RankScheduleConfig, TwoSiteConfig, from_dict
from metalora.ranks.two_site import TwoSite, bond_visits
from metalora.training.controllers import trainer_callback
from support.resume import resumes_to_the_same_bits
from support.sweeps import all_deltas
from support.transformer import WIDTH, attach_to_transformer

METHODS = {
    "metatt-4d": dict(method="metatt-4d", rank=3, targets=("query", "key")),
    "metatt-4d, other order": dict(
        method="metatt-4d", rank=2, order=("in", "proj", "layer", "out"), targets=("query", "key")
    ),
    "metatt-5d": dict(method="metatt-5d", rank={"r1": 3, "r2": 3, "r3": 3, "r4": 2}, targets=("query", "key", "up")),
    "metatt-4+1d": dict(method="metatt-4+1d", rank=3, tasks=3, targets=("query", "up")),
    "fact-tt": dict(method="fact-tt", rank=3, targets=("query",)),
    "a scale that falls with the rank": dict(method="lora", rank=2, alpha=3.0, targets=("layers.0.attention.query",)),
}


def numbers(adapter):
    return {key: value.detach().clone() for key, value in adapter.factors.items()}


def close(ours, theirs, tolerance=1e-10):
    for path, delta in ours.items():
        torch.testing.assert_close(delta, theirs[path], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_without_truncation_no_merge_and_no_split_changes_an_update(options):
    """From bond to bond without a training step in between; all factors are trained again at the end."""
    net, adapter = attach_to_transformer(**options)
    before, ranks = all_deltas(adapter), adapter.config.rank
    ranks_before = dict(adapter.method.bond_sizes(ranks, 1))
    controller = TwoSite(net, TwoSiteConfig(bond_steps=1, sweeps=2), steps=99)
    for step in range(len(controller.visits) + 1):
        close(all_deltas(adapter), before)
        learned = [key for key, factor in adapter.learned.items() if factor.requires_grad]
        if step < len(controller.visits):
            assert {adapter.layout.params[key].factor for key in learned} < set(adapter.method.factors)
            assert len({adapter.layout.params[key].factor for key in learned}) == 1
            controller.after(step + 1, None)
    assert learned == list(adapter.learned)
    assert all(size <= ranks_before[bond] for bond, size in adapter.config.rank.items())


def test_frozen_cores_stay_and_moments_are_dropped():
    net, adapter = attach_to_transformer(rank=3, targets=("query", "key"))
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2), weight_decay=0.1)
    controller = TwoSite(net, TwoSiteConfig(bond_steps=3), steps=99)
    for visit in range(len(controller.visits)):
        before = numbers(adapter)
        trained = {key for key, value in adapter.factors.items() if value.requires_grad}
        for step in range(1, 4):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            assert {key for key, value in numbers(adapter).items() if not torch.equal(value, before[key])} == trained
            assert {key for key, value in adapter.factors.items() if optimizer.state.get(value)} == trained
            controller.after(3 * visit + step, optimizer)
        assert not optimizer.state


# ---- a regression whose solution is known ---------------------------------------------------------------------------
LAYERS, ROLES, TRUE = 4, ("query", "value"), (2, 3, 2)  # the ranks of in | layer | projection | out


class Regression(nn.Module):
    """The outputs of all its linear layers for the same inputs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({role: nn.Linear(8, 7) for role in ROLES}) for _ in range(LAYERS))

    def forward(self, x):
        return torch.stack([layer[role](x) for layer in self.layers for role in ROLES])


def made(rank=4, **options):
    """(model, adapter, step -> loss): the difference to a teacher, a tensor train of known ranks."""
    torch.manual_seed(0)
    model = Regression().double()
    outer = (1, *TRUE, 1)
    shapes = zip(outer, (8, LAYERS, len(ROLES), 7), outer[1:], strict=False)
    teacher = torch.ones(1, 1, dtype=torch.float64)
    for shape in shapes:
        core = torch.linalg.qr(torch.randn(*shape, dtype=torch.float64).flatten(1).mT).Q.mT.reshape(shape)
        teacher = torch.tensordot(teacher, core, 1)
    teacher = 3 * teacher.reshape(8, LAYERS * len(ROLES), 7).movedim(1, 0)  # (layer and projection, in, out)
    base = Regression().double()
    base.load_state_dict(model.state_dict())
    adapter = attach(model, AdapterConfig("metatt-4d", rank, targets=ROLES, **options))

    def step_loss(step):
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return (model(x) - base(x) - x @ teacher).square().mean()

    return model, adapter, step_loss


VISITS = len(bond_visits(3, 2))
RULE = TwoSiteConfig(bond_steps=30, sweeps=2, tolerance=0.01)
CONFIG = TrainConfig(steps=VISITS * 30, lr=5e-2, schedule="linear", warmup=0.0, two_site=RULE)


@pytest.mark.parametrize("rank, svd", [(4, "exact"), (1, "randomised")])
def test_it_finds_the_ranks_and_the_solution(rank, svd):
    """From ranks that are too high, and from rank one: the largest size is then said in the configuration."""
    model, adapter, step_loss = made(rank)
    rule = replace(RULE, rank=4, svd=svd)
    losses = fit(model, adapter, step_loss, replace(CONFIG, two_site=rule))
    assert tuple(adapter.config.rank.values()) == TRUE
    assert float(step_loss(10**6).detach()) < 1e-3 * losses[0]
    assert all(factor.requires_grad for factor in adapter.learned.values())


def test_a_largest_rank_is_kept():
    model, adapter, step_loss = made(2)
    fit(model, adapter, step_loss, replace(CONFIG, two_site=replace(RULE, tolerance=0.0)))
    assert set(adapter.config.rank.values()) == {2}


# before the first bond or at it, at another one, and when all cores are trained again
@pytest.mark.parametrize("start, stop_step", [(0, 1), (3, 1), (3, 6), (0, 12)])
def test_an_interrupted_run_resumes_to_the_same_bits(start, stop_step, tmp_path):
    rule = TwoSiteConfig(bond_steps=2, start=start, tolerance=0.05)
    config = replace(CONFIG, steps=14, two_site=rule, checkpoint_every=100)
    resumes_to_the_same_bits(made, numbers, config, stop_step, tmp_path)


def test_in_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")

    class WithLoss(Regression):
        def forward(self, x, labels):
            return {"loss": (super().forward(x).sum(0) - labels).square().mean()}

    model = WithLoss()
    adapter = attach(model, AdapterConfig("metatt-4d", 3, targets=ROLES))
    data = [{"x": torch.randn(8), "labels": torch.randn(7)} for _ in range(16)]
    arguments = transformers.TrainingArguments(
        tmp_path, max_steps=12, per_device_train_batch_size=4, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    callback = trainer_callback(TwoSiteConfig(bond_steps=2, rank=2))
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
    assert set(adapter.config.rank.values()) == {2}
    assert all(factor.abs().max() > 0 for factor in adapter.learned.values())


# ---- what cannot be -------------------------------------------------------------------------------------------------
REFUSED = {
    "too few steps": (dict(bond_steps=4, start=1), "5 visits of 4 steps end at step 21, and the run has 20"),
}


@pytest.mark.parametrize("changes, message", REFUSED.values(), ids=REFUSED)
def test_configurations_that_cannot_be(changes, message):
    model, adapter, step_loss = made()
    before = numbers(adapter)
    with pytest.raises(ValueError, match=message):
        fit(model, adapter, step_loss, TrainConfig(steps=20, two_site=TwoSiteConfig(**(dict(bond_steps=1) | changes))))
    assert all(torch.equal(value, before[key]) for key, value in adapter.factors.items())


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(rank=3), "merged, bond 'r3' needs the size 20: .* is above 12"),  # widths add up to more than the largest
        (dict(method="lora"), "are .* times a chain, expected one tensor train"),
        (dict(method="metalora-cp", generated=(), targets=("query",)), "3 times a shared bond"),
    ],
)
def test_adapters_that_are_no_train(options, message):
    net, _ = attach_to_transformer(**options)
    with pytest.raises(ValueError, match=message):
        TwoSite(net, TwoSiteConfig(), steps=1000)


def test_the_configuration_names_it_and_allows_no_other_rule():
    config = from_dict(TrainConfig, {"steps": 20, "two_site": {"bond_steps": 2, "svd": "randomised"}})
    assert config.two_site == TwoSiteConfig(bond_steps=2, svd="randomised")
    model, adapter, step_loss = made()
    with pytest.raises(ValueError, match="rank_schedule and two_site all change ranks"):
        fit(model, adapter, step_loss, replace(config, rank_schedule=RankScheduleConfig(steps=(2,), ranks=(2,))))
