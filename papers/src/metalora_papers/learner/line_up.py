"""The runs of the tables of learners: the frozen network, peers, and static and generated adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from metalora._util.suggest import nearest
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora_papers.config import BackboneConfig
from metalora_papers.learner.config import LEARNER_TRAINING, LearnerRunConfig, LearnerTableConfig

ORIGINAL, FITTED = "original", "fitted on the support set"
STATIC, UNLABELLED, ONE_TASK = "lora", "lora, no labels", "lora, one task a step"
SCALES = "film, scales alone"
FILM, STATIC_FILM = "film", "film, static"
NOT_TREATMENTS = (ORIGINAL, FITTED)
EMOJI = "learner-emoji"
TRAINED_WITHOUT_VENDORS = ("category", "hue", "filled")  # pictures of one vendor cannot be told apart by vendor
TRAIN_ALPHA = 4.0  # of the tensor trains, as in the tables of MetaTT
TRAIN_EXCLUDES = ("stem.*",)  # of the mixer: a train numbers the layers, and the stem has no number
TRAIN_INIT = {"metatt-4d": "ze-id-id-or", "metatt-4+1d": "ze-id-id-id-or"}
FITTED_PEERS = (
    "linear head, last layer, fitted",
    "linear head, all stages, fitted",
    "LoRA and head, last layer, fitted",
    "LoRA and head, all stages, fitted",
)
SETFIT = "SetFit"
LORA_READOUT = "LoRA and readout"  # whose seconds are measured in the process of the peers above
CONSTANT = ConditionConfig(scope="constant")  # of static adapters
FITTED_RANK = 8  # of the LoRA that is fitted on a support set

Change = Callable[[LearnerRunConfig], LearnerRunConfig]


def run_of(
    name: str, table: LearnerTableConfig, method: str, seed: int, lr: float, split: Literal["val", "test"] = "test"
) -> LearnerRunConfig:
    """Return one run of a table.

    Args:
        name: Name of the table, which is that of the suite.
        table: Its settings.
        method: Name of a row; see `methods_of`.
        seed: Seed of the adapter and of all episodes.
        lr: Peak learning rate.
        split: What the run is scored on.
    """
    return methods_of(name, table)[method](_plain_run(name, table, method, seed, lr, split))


def methods_of(name: str, table: LearnerTableConfig) -> dict[str, Change]:
    """Return the rows of a table: name of the method -> what turns the run of the frozen network into its run.

    The rows of FiLM are only in a table whose `methods` name them.

    Args:
        name: Name of the table.
        table: Its settings.

    Raises:
        ValueError: A name in `methods` is not that of a row.
    """
    cp = _generated("metalora-cp", table.cp_rank, table)
    every_row: dict[str, Change] = {
        ORIGINAL: lambda run: run,
        STATIC: _with(_lora(table)),
        UNLABELLED: _with(_lora(table), procedural=1.0),
        ONE_TASK: _with(_lora(table), label_sets=1),
        "metalora-cp": _with(cp),
        "metalora-tr": _with(_generated("metalora-tr", table.ring_rank, table)),
        "metalora-cp after static steps": _with(cp, static_steps=round(table.static_share * table.steps)),
        "metalora-cp, gradient step": _with(cp, generator="gradient-step"),
        "metalora-cp, component": _with(cp, generator="component"),
        SCALES: _with(_scales(table)),
    }
    if name == "learner-texts" or table.backbone == "mixer":  # the trains are defined for linear layers
        every_row["metatt-4d"] = _with(_train("metatt-4d", table))
        every_row["metatt-4+1d generated"] = _with(_generated_train(table))
    every_row[FITTED] = _fitted(name, table)
    by_name = every_row | {FILM: _with(_film(table, _support(table))), STATIC_FILM: _with(_film(table))}
    for method in table.methods:
        if method not in by_name:
            raise ValueError(f"table {name}: unknown row {method!r}{nearest(method, by_name)}")
    return {method: by_name[method] for method in table.methods or every_row}


def _with(adapter: AdapterConfig, **fields: Any) -> Change:
    """Return what gives a run an adapter, with the run's seed, and other values of some fields."""

    def change(run: LearnerRunConfig) -> LearnerRunConfig:
        return dataclasses.replace(run, adapter=dataclasses.replace(adapter, seed=run.seed), **fields)

    return change


def _fitted(name: str, table: LearnerTableConfig) -> Change:
    peers = (*FITTED_PEERS, SETFIT) if name == "learner-texts" else FITTED_PEERS

    def change(run: LearnerRunConfig) -> LearnerRunConfig:
        adapter = dataclasses.replace(_lora(table), rank=FITTED_RANK, seed=run.seed)
        return dataclasses.replace(run, peers=peers, peer_adapter=adapter, test_episodes=table.fitted_episodes)

    return change


# ---- adapters -------------------------------------------------------------------------------------------------------
def _lora(table: LearnerTableConfig) -> AdapterConfig:
    return AdapterConfig("lora", table.rank, targets=_targets(table), clip_rank=True, condition=CONSTANT)


def _targets(table: LearnerTableConfig) -> str | tuple[str, ...]:
    """Return the targets as an adapter takes them: a word such as "conv" alone, or patterns."""
    is_word = len(table.targets) == 1 and table.targets[0] in ("all", "linear", "conv")
    return table.targets[0] if is_word else table.targets


def _support(table: LearnerTableConfig) -> ConditionConfig:
    return ConditionConfig(scope="support", hidden=table.hidden)


def _generated(method: str, rank: int, table: LearnerTableConfig) -> AdapterConfig:
    return AdapterConfig(method, rank, targets=_targets(table), clip_rank=True, condition=_support(table))


def _film(table: LearnerTableConfig, condition: ConditionConfig = CONSTANT) -> AdapterConfig:
    """Return FiLM: generated from the support set as in CNAPs, or learned as in FiT if the condition is constant."""
    return AdapterConfig("film", targets=_targets(table), condition=condition)


def _scales(table: LearnerTableConfig) -> AdapterConfig:
    """Return the scales of FiLM (CNAPs, Requeima et al. 2019, arXiv:1906.07697), one for each channel of an output.

    They are the magnitudes of DoRA, generated; the LoRA that comes with them has rank one. The row `film` has FiLM's
    shifts too, and no LoRA.
    """
    return dataclasses.replace(_generated("dora", 1, table), generated=("d",))


def _train(method: str, table: LearnerTableConfig) -> AdapterConfig:
    return AdapterConfig(
        method,
        table.rank,
        alpha=TRAIN_ALPHA,
        init=TRAIN_INIT[method],
        targets=_targets(table),
        exclude=TRAIN_EXCLUDES if table.backbone == "mixer" else (),
        condition=CONSTANT,
    )


def _generated_train(table: LearnerTableConfig) -> AdapterConfig:
    """Return MetaTT-(4+1)D whose task core a mapping net makes from a labelled support set."""
    return dataclasses.replace(_train("metatt-4+1d", table), generated=("G3",), condition=_support(table))


# ---- runs -----------------------------------------------------------------------------------------------------------
def _plain_run(
    name: str, table: LearnerTableConfig, method: str, seed: int, lr: float, split: Literal["val", "test"]
) -> LearnerRunConfig:
    """Return the run of the frozen network."""
    train: TrainConfig = dataclasses.replace(LEARNER_TRAINING, steps=table.steps, lr=lr)
    is_attributes = name == "learner-attributes"
    backbone = BackboneConfig(architecture=table.backbone, steps=table.pretrain_steps)
    return LearnerRunConfig(
        suite=name,  # type: ignore[arg-type]  # mypy takes a name of a table for any string
        data=table.data if is_attributes else "",
        data_root=table.data_root,
        method=method,
        backbone=backbone if is_attributes else BackboneConfig(),
        readout=table.readout,
        train=train,
        trained=trained_of(name, table),
        held_out=table.held_out,
        left_out_vendor=table.left_out_vendor,
        size=table.size,
        support=table.support,
        query=table.query,
        label_sets=table.label_sets,
        forwards=table.forwards,
        procedural=table.procedural,
        class_episodes=table.class_episodes,
        test_episodes=table.test_episodes,
        seed=seed,
        split=split,
    )


def trained_of(name: str, table: LearnerTableConfig) -> tuple[str, ...]:
    """Return the notions that a table trains on; none: those of the suite."""
    if name == EMOJI and table.left_out_vendor and not table.trained:
        return TRAINED_WITHOUT_VENDORS
    return table.trained
