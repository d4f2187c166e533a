"""The methods that bring a network to a new task, and the runs of the table; imports no torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from metalora._util.suggest import check_choice
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora_papers.new_task.config import IMAGES, TEXTS, THROUGHPUT, NewTaskRunConfig, NewTaskTableConfig

NEIGHBOURS, REGRESSION, DISCRIMINANT = "k-NN", "logistic regression", "LDA"
FROZEN = "readout, frozen network"
READOUT, CORE, REFINED = "generated readout", "generated core", "generated readout, refined"
LORA, FULL, SETFIT = "LoRA, fitted", "full fine-tuning", "SetFit's algorithm"
LORA_OF_STAGES, FULL_OF_STAGES = f"{LORA}, all stages", f"{FULL}, all stages"
LORAS, OF_STAGES = (LORA, LORA_OF_STAGES), (LORA_OF_STAGES, FULL_OF_STAGES)
FINE_TUNINGS = (*LORAS, FULL, FULL_OF_STAGES)
CLASSIFIERS = (NEIGHBOURS, REGRESSION, DISCRIMINANT)  # of scikit-learn, on the frozen features of all stages
METHODS = (*CLASSIFIERS, FROZEN, READOUT, CORE, REFINED, *FINE_TUNINGS, SETFIT)
OURS = (FROZEN, READOUT, CORE, REFINED)
MANY_TASKS = "64 tasks"  # the row of the throughput

IMAGE_TARGETS = ("conv_stem", "conv_pw", "conv_pwl", "conv_head")
TEXT_TARGETS = ("query", "value", "intermediate.dense", "output.dense")
LEARNER_RATE = 5e-3
RANK = 8
CHOOSING_SEEDS = (1000, 1001)  # learning rates and numbers of steps are chosen with seeds of their own


@dataclass(frozen=True)
class Inputs:
    """What the table says of one kind of inputs."""

    targets: tuple[str, ...]
    meta_steps: int
    fit_steps: tuple[int, ...]
    tasks: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Schedule:
    """How a method is trained on a support set: learning rate and number of gradient steps; 0 if it takes none."""

    lr: float = 0.0
    steps: int = 0


def inputs_of(suite: str, table: NewTaskTableConfig) -> Inputs:
    """Return the targets, the steps of the meta-training and the tasks of one kind of inputs."""
    if suite == IMAGES:
        return Inputs(
            targets=IMAGE_TARGETS,
            meta_steps=table.image_steps,
            fit_steps=table.image_fit_steps,
            tasks=table.image_tasks,
            validation=table.image_validation,
        )
    return Inputs(
        targets=TEXT_TARGETS,
        meta_steps=table.text_steps,
        fit_steps=table.text_fit_steps,
        tasks=table.text_tasks,
        validation=table.text_validation,
    )


def methods_of(suite: str, table: NewTaskTableConfig) -> tuple[str, ...]:
    """Return the rows of one kind of inputs.

    Raises:
        ValueError: A name in `methods` is not that of a row.
    """
    for method in table.methods:
        check_choice("method", method, METHODS)
    chosen = table.methods or METHODS
    return tuple(method for method in METHODS if method in chosen and (suite == TEXTS or method != SETFIT))


def schedules_of(suite: str, method: str, table: NewTaskTableConfig) -> tuple[Schedule, ...]:
    """Return the schedules of a method to choose from; empty if it takes no gradient step."""
    fit_steps = inputs_of(suite, table).fit_steps
    grids = {
        **dict.fromkeys(LORAS, (table.lora_rates, fit_steps)),
        **dict.fromkeys((FULL, FULL_OF_STAGES), (table.full_rates, fit_steps)),
        SETFIT: (table.contrastive_rates, table.contrastive_steps),
        REFINED: (table.refining_rates, table.refining_steps),
    }
    rates, numbers = grids.get(method, ((), ()))
    return tuple(Schedule(lr, steps) for steps in numbers for lr in rates)


def run_of(
    suite: str,
    table: NewTaskTableConfig,
    method: str,
    seed: int,
    schedule: Schedule,
    split: Literal["val", "test"] = "test",
) -> NewTaskRunConfig:
    """Return the run of a method on the support sets of one seed.

    Args:
        suite: The kind of inputs.
        table: The settings.
        method: Name of the row.
        seed: Seed of the support sets.
        schedule: How it is trained on a support set.
        split: What it is scored on.
    """
    inputs = inputs_of(suite, table)
    return NewTaskRunConfig(
        suite=suite,  # type: ignore[arg-type]  # mypy takes a name of a suite for any string
        method=method,
        data_root=table.data_root,
        learner=_learner(method, inputs.targets),
        train=TrainConfig(steps=inputs.meta_steps, lr=LEARNER_RATE, mapping_lr_ratio=1.0, store="float32"),
        pool=table.pool,
        targets=inputs.targets,
        features="stages" if method in OF_STAGES else "last",
        rank=RANK,
        steps=schedule.steps,
        lr=schedule.lr,
        tasks=inputs.tasks if split == "test" else inputs.validation,
        support=table.support,
        queries=table.queries,
        seed=seed,
        split=split,
    )


def throughput_run(table: NewTaskTableConfig, seed: int) -> NewTaskRunConfig:
    """Return the run that compares 64 tasks in one training with 64 trainings."""
    return NewTaskRunConfig(suite=THROUGHPUT, method=MANY_TASKS, rank=RANK, steps=table.throughput_steps, seed=seed)


def lora(targets: tuple[str, ...], rank: int) -> AdapterConfig:
    """Return the LoRA that is fitted on a support set, and that of a learner."""
    condition = ConditionConfig(scope="constant")
    return AdapterConfig("lora", rank, targets=targets, clip_rank=True, condition=condition)


def _learner(method: str, targets: tuple[str, ...]) -> AdapterConfig | None:
    static = lora(targets, RANK)
    if method == CORE:
        condition = ConditionConfig(scope="support", hidden=16)
        return dataclasses.replace(static, method="metalora-cp", condition=condition)
    return static if method in (READOUT, REFINED) else None
