"""Two gloo processes train one adapter, in a group that Accelerate does not count: both end as one process would."""

import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from metalora import AdapterConfig, ConditionConfig, attach
from metalora.adapters.attach import adapter_of
from metalora.config import RankBudgetConfig, RankScheduleConfig, TrainConfig, TwoSiteConfig
from metalora.training.loop import fit
from support.fresh_process import run_together
from support.query_value_blocks import Network

pytest.importorskip("accelerate")
STEPS, BATCH = 12, 4
BOTH = ("query", "value")
FEATURES = ConditionConfig(source="tensor", feature_size=6, scope="sample", hidden=4)


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


def run(case, *, prepare=None, seed=0, lr=1e-2, more_parts=1, failure=(None, None), **options):
    """Train with `more_parts` times as many batches a step as the case has; (losses, numbers).

    `failure` is the number of a batch, and the error that it raises, or None if its loss is NaN.
    """
    config, train, with_head = CASES[case]
    network = base()
    adapter = None if config is None else attach(network, replace(config, seed=seed))
    generator = torch.Generator().manual_seed(0)
    batches = torch.randn(4 * STEPS, BATCH, 6, dtype=torch.float64, generator=generator)
    if prepare is not None:
        prepare(network)

    def step_loss(k):
        if k == failure[0] and failure[1] is not None:
            raise failure[1]
        x = batches[k] + 0.1 * torch.randn(BATCH, 6, dtype=torch.float64)  # noise that (seed, k) alone decides on
        condition = dict(condition=adapter.condition(x)) if adapter is not None and adapter.conditional else {}
        loss = F.cross_entropy(network(x, **condition), (x[:, 0] > 0).long() + (x[:, 1] > 1).long())
        return loss * (float("nan") if k == failure[0] else 1.0)

    head = network.head.requires_grad_(True) if with_head else None
    train = replace(train, lr=lr, accumulate=more_parts * train.accumulate)
    losses = fit(network, adapter, step_loss, train, extra_module=head, **options)
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
        run(case, **options)
    except ValueError as error:
        return str(error)
    return None


def stopped(rank, how):
    """How many losses there are when process 1 alone is stopped in step 3."""
    seen = []

    def on_step(step, loss):
        seen.append(loss)
        if rank == 1 and step == 3 and how != "on_step":
            signal.raise_signal({"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}[how])
        return rank == 1 and step == 3 and how == "on_step"

    try:
        run("shared factors", on_step=on_step)
    except KeyboardInterrupt:
        seen.append("interrupted")
    return [len(seen), "interrupted" in seen]


def refusals(rank):
    """Name -> the message if process 1 has something else."""
    return {
        "base": refusal("shared factors", prepare=lambda network: network.head.bias.data.add_(rank)),
        "adapter": refusal("shared factors", seed=rank),
        "training": refusal("shared factors", lr=1e-2 * (1 + rank)),
        "batch": refusal("shared factors", failure=(3, ValueError("there is no batch 3"))),
        "NaN": refusal("shared factors", failure=(5, None)),
        "a fault": refusal("shared factors", failure=(7, KeyError("labels"))),
    }


def resumed(rank, folder):
    """The numbers after a run that was cut off, of which process 1 does not see the file."""

    def on_step(step, loss):
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    path = folder / f"checkpoint of {rank}"
    try:
        run("ranks that fall", on_step=on_step, checkpoint=path)
    except KeyboardInterrupt:
        pass
    assert path.exists() == (rank == 0)
    if rank == 0:
        shutil.copy(path, folder / "checkpoint of two")
    return run("ranks that fall", checkpoint=path)[1]


def check_processes(rank, folder):
    """Run everything with the other process, and write the results."""
    results = {case: run(case) for case in CASES}
    results["other start"] = run("shared factors", prepare=other_start if rank == 1 else None)
    results["resumed"] = [], resumed(rank, folder)
    results["resumed from one"] = run("ranks that fall", checkpoint=folder / "checkpoint of one")
    told = {how: stopped(rank, how) for how in ("Ctrl-C", "SIGTERM", "on_step")} | refusals(rank)
    torch.save(results, folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(told))


# ---- the comparison -------------------------------------------------------------------------------------------------
def interrupted_alone(path):
    """Write the checkpoint of a single process that accumulates what two processes would do."""
    with pytest.raises(KeyboardInterrupt):
        run("ranks that fall", more_parts=2, checkpoint=path, on_step=lambda step, loss: step == 4 and cut_off())


def cut_off():
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def outcomes(folder):
    """The results of both processes: two of (tensors of every case, messages)."""
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & {*os.environ}  # so that Accelerate sees one process
    interrupted_alone(folder / "checkpoint of one")
    ended = run_together(__file__, [[rank, folder] for rank in (0, 1)], [{}, {}])
    assert [process.returncode for process in ended] == [0, 0], [process.stderr[-3000:] for process in ended]
    return [(torch.load(folder / f"{rank}.pt"), json.loads((folder / f"{rank}.json").read_text())) for rank in (0, 1)]


ALONE = {"other start": "shared factors", "resumed": "ranks that fall", "resumed from one": "ranks that fall"}


@pytest.mark.parametrize("case", [*CASES, *ALONE])
def test_two_processes_end_with_the_same_bits_which_are_those_of_one_that_accumulates(case, outcomes):
    (first_losses, first), (second_losses, second) = (results[case] for results, _ in outcomes)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    assert first_losses == second_losses
    losses, expected = run(ALONE.get(case, case), more_parts=2)
    assert_close(first, expected)
    if first_losses:
        torch.testing.assert_close(first_losses, losses, rtol=1e-6, atol=1e-8)


def assert_close(numbers, expected):
    for name, value in numbers.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)  # sums in another order, 12 steps


def test_one_process_continues_what_two_have_begun(outcomes, folder, tmp_path):
    assert_close(
        run("ranks that fall", more_parts=2, checkpoint=folder / "checkpoint of two")[1], outcomes[0][0]["resumed"][1]
    )


def test_another_number_of_batches_a_step_is_refused(outcomes, folder):
    with pytest.raises(ValueError, match="made with 2 batches a step .* this run has 3; change accumulate or"):
        run("ranks that fall", more_parts=3, checkpoint=folder / "checkpoint of two")


@pytest.mark.parametrize("how, interrupted", [("Ctrl-C", True), ("SIGTERM", True), ("on_step", False)])
def test_what_stops_one_process_stops_both_after_the_same_step(how, interrupted, outcomes):
    for _, told in outcomes:
        assert told[how] == [4 + interrupted, interrupted]


REFUSED = {
    "base": "fit: the frozen base",
    "adapter": "fit: the adapter, or",
    "training": "fit: the configuration of the training",
    "batch": "process 1: there is no batch 3",
    "NaN": "process 1: step 2: the loss is nan",
    "a fault": "process 1: KeyError: 'labels'",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_one_process_cannot_do_ends_both_with_one_message(what, outcomes):
    for _, told in outcomes:
        assert told[what] is not None and told[what].startswith(REFUSED[what])


if __name__ == "__main__":
    own_rank, shared = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{shared}/group", rank=own_rank, world_size=2, timeout=timedelta(seconds=120)
    )
    check_processes(own_rank, shared)
    torch.distributed.destroy_process_group()
