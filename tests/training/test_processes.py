"""Two gloo processes train one adapter, in a group that Accelerate does not count: both end as one process would."""

import json
import os
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.adapters.attach import adapter_of
from metalora.config import RankBudgetConfig, RankScheduleConfig, TrainConfig, TwoSiteConfig
from metalora.training.loop import fit
from support.fresh_process import run_together

pytest.importorskip("accelerate")
STEPS, BATCH = 12, 4
BOTH = ("query", "value")
FEATURES = ConditionConfig(source="tensor", feature_size=6, scope="sample", hidden=4)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return x + self.value(torch.tanh(self.query(x)))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def base():
    torch.manual_seed(0)
    return Network().double().eval()


FALLING = RankScheduleConfig(steps=(4, 8), ranks=(3, 2), importance="sensitivity")
# name -> (adapter, training, whether the head is trained too)
CASES = {
    "shared factors": (AdapterConfig("metatt-4d", 3, targets=BOTH), TrainConfig(steps=STEPS), False),
    "a head, accumulated": (
        AdapterConfig("lora", 2, targets=BOTH),
        TrainConfig(accumulate=2, clip=0.5, steps=STEPS),
        True,
    ),
    "a head alone": (None, TrainConfig(steps=STEPS), True),
    "generated": (AdapterConfig("metalora-cp", 2, targets=BOTH, condition=FEATURES), TrainConfig(steps=STEPS), False),
    "ranks that fall": (
        AdapterConfig("metatt-4d", 4, targets=BOTH, init="ze-no-no-no"),
        TrainConfig(
            rank_schedule=RankScheduleConfig(steps=(4, 8), ranks=(3, 2), importance="sensitivity"), steps=STEPS
        ),
        False,
    ),
    "a budget": (
        AdapterConfig("adalora", 3, targets=BOTH),
        TrainConfig(rank_budget=RankBudgetConfig(final=1, start=2, hold=3, every=2), steps=STEPS),
        False,
    ),
    "bond by bond": (
        AdapterConfig("metatt-4d", 2, targets=BOTH, init="ze-no-no-no"),
        TrainConfig(two_site=TwoSiteConfig(bond_steps=2), steps=STEPS),
        False,
    ),
}


def run(case, halves, *, prepare=None, seed=0, lr=1e-2, **options):
    """Train on these halves of every batch; (losses, numbers)."""
    config, train, with_head = CASES[case]
    network = base()
    adapter = None if config is None else attach(network, replace(config, seed=seed))
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(2 * STEPS, 2, BATCH, 6, dtype=torch.float64, generator=generator)
    if prepare is not None:
        prepare(network)

    def step_loss(k):
        x = torch.cat([batches[k, half] for half in halves])
        condition = dict(condition=adapter.condition(x)) if adapter is not None and adapter.conditional else {}
        return F.cross_entropy(network(x, **condition), (x[:, 0] > 0).long() + (x[:, 1] > 1).long())

    head = network.head.requires_grad_(True) if with_head else None
    losses = fit(network, adapter, step_loss, replace(train, lr=lr), extra_module=head, **options)
    return losses, {name: value.detach().clone() for name, value in network.state_dict().items()}


# ---- what each of the two processes does ----------------------------------------------------------------------------
def other_start(network):
    """The same adapter, from other numbers."""
    with torch.no_grad():
        for parameter in adapter_of(network).parameters():
            parameter.add_(0.1)


def refusal(case, **options):
    """The message of the ValueError with which a run ends."""
    try:
        run(case, [0], **options)
    except ValueError as error:
        return str(error)
    return None


def stopped(rank, how):
    """How many losses there are when process 1 alone is stopped in step 3."""
    seen = []

    def on_step(step, loss):
        seen.append(loss)
        if rank == 1 and step == 3 and how == "Ctrl-C":
            signal.raise_signal(signal.SIGINT)
        return rank == 1 and step == 3 and how == "on_step"

    try:
        run("shared factors", [rank], on_step=on_step)
    except KeyboardInterrupt:
        seen.append("interrupted")
    return [len(seen), "interrupted" in seen]


def refusals(rank):
    """Name -> the message if process 1 has something else."""
    return {
        "base": refusal("shared factors", prepare=lambda network: network.head.bias.data.add_(rank)),
        "adapter": refusal("shared factors", seed=rank),
        "training": refusal("shared factors", lr=1e-2 * (1 + rank)),
    }


def resumed(rank, folder):
    """The numbers after a run that was cut off, of which process 1 does not see the file."""

    def on_step(step, loss):
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    path = folder / f"checkpoint of {rank}"
    try:
        run("ranks that fall", [rank], on_step=on_step, checkpoint=path)
    except KeyboardInterrupt:
        pass
    assert path.exists() == (rank == 0)
    return run("ranks that fall", [rank], checkpoint=path)[1]


def check_processes(rank, folder):
    """Run everything with the other process, and write the results."""
    results = {case: run(case, [rank]) for case in CASES}
    results["other start"] = run("shared factors", [rank], prepare=other_start if rank == 1 else None)
    results["resumed"] = [], resumed(rank, folder)
    told = {how: stopped(rank, how) for how in ("Ctrl-C", "on_step")} | refusals(rank)
    torch.save(results, folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(told))


# ---- the comparison -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The results of both processes: two of (tensors of every case, messages)."""
    folder = tmp_path_factory.mktemp("processes")
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & {*os.environ}  # so that Accelerate sees one process
    ended = run_together(__file__, [[rank, folder] for rank in (0, 1)], [{}, {}])
    assert [process.returncode for process in ended] == [0, 0], [process.stderr[-3000:] for process in ended]
    return [(torch.load(folder / f"{rank}.pt"), json.loads((folder / f"{rank}.json").read_text())) for rank in (0, 1)]


@pytest.mark.parametrize("case", [*CASES, "other start", "resumed"])
def test_both_processes_end_with_the_same_bits_which_are_those_of_one_process(case, outcomes):
    (first_losses, first), (second_losses, second) = (results[case] for results, _ in outcomes)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    alone = {"other start": "shared factors", "resumed": "ranks that fall"}.get(case, case)
    losses, expected = run(alone, [0, 1])
    for name, value in first.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)  # sums in another order, 12 steps
    if first_losses:
        assert first_losses != second_losses, "both processes had the same batches"
        means = [(a + b) / 2 for a, b in zip(first_losses, second_losses, strict=True)]
        torch.testing.assert_close(means, losses, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("how, interrupted", [("Ctrl-C", True), ("on_step", False)])
def test_what_stops_one_process_stops_both_after_the_same_step(how, interrupted, outcomes):
    for _, told in outcomes:
        assert told[how] == [4 + interrupted, interrupted]


REFUSED = {"base": "the frozen base", "adapter": "the adapter, or", "training": "the configuration of the training"}


@pytest.mark.parametrize("what", REFUSED)
def test_processes_that_do_not_train_the_same_are_refused_in_both(what, outcomes):
    for _, told in outcomes:
        assert told[what] is not None and told[what].startswith(f"fit: {REFUSED[what]}")


if __name__ == "__main__":
    own_rank, shared = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{shared}/group", rank=own_rank, world_size=2, timeout=timedelta(seconds=120)
    )
    check_processes(own_rank, shared)
    torch.distributed.destroy_process_group()
