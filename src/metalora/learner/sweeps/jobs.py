"""What a trial trains: a fine-tuning to one task, or a learner; both keep inputs that no trial sees."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from metalora.config import AdapterConfig, to_dict
from metalora.learner.backbone import Backbone
from metalora.learner.config import LearnerConfig
from metalora.learner.data import TaskPool, encode_labels
from metalora.learner.data.pool_digest import pools_digest
from metalora.learner.finetuning import PLAIN_METHODS, FineTuned, OnValidation, finetune, usual_rate
from metalora.learner.finetuning_config import FineTuneConfig
from metalora.learner.finetuning_data import check_classes, stratified_split
from metalora.learner.labels import TaskLabels, group_numbers
from metalora.learner.learner import MetaLearner
from metalora.learner.report import LEARNER
from metalora.learner.splits import split_pools
from metalora.learner.sweeps.space import Choice
from metalora.learner.validation import validation_episodes

MIN_CLASS_ITEMS = 3  # one to train on, one for the validation, one for the test


@dataclass(frozen=True)
class Trained:
    """What a trial has trained.

    Attributes:
        parameters: How many numbers were trained.
        save: Writes it to a folder.
    """

    parameters: int
    save: Callable[[str | Path], Path]


class Job(Protocol):
    """A training that is searched.

    Attributes:
        verb: "finetune" or "fit".
        plain_methods: What may be trained instead of an adapter.
        backbone: The network, which stays as it is.
        adapter: The adapter without a search.
        validations: Number of validations of a training.
        unit: What the test counts.
    """

    verb: str
    plain_methods: tuple[str, ...]
    backbone: Backbone
    adapter: AdapterConfig
    validations: int
    unit: str

    def usual_rate(self, method: str) -> float:
        """Return the learning rate of a method without a search."""

    def train(self, choice: Choice, on_validation: OnValidation) -> Trained:
        """Train with a choice."""

    def test(self, folder: Path, out: Path | None) -> tuple[float, ...]:
        """Return the scores on what no trial has seen, of what a trial has saved; write it to `out` if given."""

    def settings(self, choice: Choice) -> dict[str, Any]:
        """Return all settings of a training with a choice, as `--config` of the verb takes them."""

    def data(self) -> dict[str, Any]:
        """Return what tells the data from others."""


class FineTuneJob:
    """A fine-tuning to one task; see `metalora.learner.finetune`.

    Args:
        backbone: The network.
        inputs: The inputs.
        labels: A class for each of them.
        groups: Group of each input, or None.
        adapter: The adapter without a search.
        config: The settings without a search.
        test_items: Share of the inputs of each class that no trial sees.
        device: Where the network runs.

    Raises:
        ValueError: The labels are no classes, or a class has less than three inputs.
    """

    verb, unit = "finetune", "inputs"
    plain_methods: tuple[str, ...] = PLAIN_METHODS

    def __init__(
        self,
        backbone: Backbone,
        inputs: Sequence[Any],
        labels: Sequence[Any],
        groups: Sequence[Any] | None,
        adapter: AdapterConfig,
        config: FineTuneConfig,
        test_items: float,
        device: str | torch.device | None,
    ):
        self.backbone, self.adapter, self.config, self.device = backbone, adapter, config, device
        self.inputs, self.labels = list(inputs), list(check_classes(labels))
        self.groups = None if groups is None else group_numbers(groups, len(self.inputs))
        backbone.check_inputs(self.inputs)
        codes = _class_codes(self.labels, len(self.inputs))
        searched, tested = stratified_split(codes, test_items, adapter.seed, self.groups)
        self.searched, self.tested = searched.tolist(), tested.tolist()
        self.validations = -(-config.steps // config.validate_every)

    def usual_rate(self, method: str) -> float:
        """Return the learning rate of a method without a search."""
        return self.config.lr or usual_rate(method)

    def train(self, choice: Choice, on_validation: OnValidation) -> Trained:
        """Fine-tune with a choice on the inputs that the search may see."""
        tuned = finetune(
            _copied(self.backbone),
            [self.inputs[row] for row in self.searched],
            [self.labels[row] for row in self.searched],
            choice.adapter(self.adapter),
            replace(self.config, lr=choice.lr),
            groups=None if self.groups is None else self.groups[self.searched].tolist(),
            seed=self.adapter.seed,
            device=self.device,
            on_validation=on_validation,
        )
        return Trained(tuned.num_params(), tuned.save_pretrained)

    def test(self, folder: Path, out: Path | None) -> tuple[float, ...]:
        """Return for each test input whether its class is right, 0.0 or 1.0."""
        tuned = FineTuned.from_pretrained(folder, backbone=_copied(self.backbone).model, device=self.device)
        if out is not None:
            tuned.save_pretrained(out)
        predicted = tuned.predict([self.inputs[row] for row in self.tested])
        truth = [self.labels[row] for row in self.tested]
        return tuple(float(guess == true) for guess, true in zip(predicted.tolist(), truth, strict=True))

    def settings(self, choice: Choice) -> dict[str, Any]:
        """Return all settings of a fine-tuning with a choice."""
        return {**to_dict(replace(self.config, lr=choice.lr)), "adapter": to_dict(choice.adapter(self.adapter))}

    def data(self) -> dict[str, Any]:
        """Return a digest of the inputs, their labels and groups."""
        column = encode_labels(self.labels)
        return {"sha256": pools_digest([TaskPool(self.inputs, {"labels": column}, self.groups)])}


class FitJob:
    """The meta-training of a learner; see `metalora.learner.MetaLearner`.

    Args:
        backbone: The network.
        pools: The tasks.
        config: The settings without a search.
        holdout: How many tasks, or which, no trial sees.
        test_items: Share of the inputs that no trial sees.
        device: Where the network runs.

    Raises:
        ValueError: The settings have no adapter or no validation, or there are too few inputs for one, or a task that
            is held out is unknown.
    """

    verb, unit = "fit", "episodes"
    plain_methods: tuple[str, ...] = ()

    def __init__(
        self,
        backbone: Backbone,
        pools: Sequence[TaskPool],
        config: LearnerConfig,
        holdout: int | Sequence[str] | None,
        test_items: float,
        device: str | torch.device | None,
    ):
        if config.adapter is None:
            raise ValueError("sweep: the settings have no adapter, so there is nothing to search")
        if not config.validate_every or not config.steps:
            raise ValueError(
                f"sweep: validate_every is {config.validate_every} and steps {config.steps}, so that no validation "
                "happens in a training; set it to a fifth of the steps or so"
            )
        self.backbone, self.config, self.device, self.pools = backbone, config, device, pools
        self.adapter = replace(config.adapter, seed=config.seed)
        for pool in pools:
            backbone.check_inputs(pool.inputs)
        self.split = split_pools(pools, holdout, test_items, config.seed)
        self.validations = -(-config.steps // config.validate_every)
        of_trial = split_pools(self.split.trained, None, config.holdout_items, config.seed)
        if not validation_episodes(of_trial, config):
            raise ValueError(
                f"sweep: nothing can be validated: {of_trial.without_episode()}; give more labelled inputs, or a "
                "larger holdout_items"
            )

    def usual_rate(self, method: str) -> float:
        """Return the learning rate of all methods without a search."""
        return self.config.lr

    def train(self, choice: Choice, on_validation: OnValidation) -> Trained:
        """Train a learner with a choice on the inputs and tasks that the search may see."""
        learner = MetaLearner(_copied(self.backbone), self._config(choice), device=self.device)
        learner.fit_pools(self.split.trained, on_validation=on_validation, report=False)
        assert learner.adapter is not None
        return Trained(learner.adapter.num_params(), learner.save_pretrained)

    def test(self, folder: Path, out: Path | None) -> tuple[float, ...]:
        """Return the accuracy of every test episode, of inputs and tasks that no trial has seen."""
        from metalora.learner.report import make_report

        learner = MetaLearner.from_pretrained(folder, backbone=_copied(self.backbone).model, device=self.device)
        learner.report_ = make_report(learner, self.split)
        if out is not None:
            learner.save_pretrained(out)
        ours = [score.accuracies for score in learner.report_.scores if score.method == LEARNER]
        return tuple(accuracy for accuracies in ours for accuracy in accuracies)

    def settings(self, choice: Choice) -> dict[str, Any]:
        """Return all settings of a learner with a choice."""
        return to_dict(self._config(choice))

    def _config(self, choice: Choice) -> LearnerConfig:
        return replace(self.config, adapter=choice.adapter(self.adapter), lr=choice.lr)

    def data(self) -> dict[str, Any]:
        """Return a digest of all inputs and labels, and the tasks that no trial sees."""
        return {"sha256": pools_digest(self.pools), "held_out": list(self.split.held_out)}


def _copied(backbone: Backbone) -> Backbone:
    """Return a backbone with a network of its own, so that no trial finds the adapter of another one."""
    return replace(backbone, model=copy.deepcopy(backbone.model))


def _class_codes(labels: Sequence[Any], items: int) -> torch.Tensor:
    """Return the class of each input, (n,); ValueError if a class is too small to be split twice."""
    encoder = TaskLabels.of(labels, "classes", items)
    assert encoder.targets is not None
    codes = encoder.targets.codes
    for name, count in zip(encoder.classes, torch.bincount(codes).tolist(), strict=True):
        if count < MIN_CLASS_ITEMS:
            raise ValueError(
                f"labels: class {name!r} has {count} examples; a sweep needs {MIN_CLASS_ITEMS}, "
                "to train, to choose and to test"
            )
    return codes
