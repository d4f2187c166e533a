"""A run of the time to a new task as a `metalora_papers.suite.Suite`: nothing is trained but on support sets."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.learner import MetaLearner
from metalora_papers.new_task.config import THROUGHPUT, NewTaskRunConfig
from metalora_papers.new_task.cost import Cost, measured
from metalora_papers.new_task.items import NewTask, load_items, load_network, new_task
from metalora_papers.new_task.learners import meta_trained
from metalora_papers.new_task.methods import Fitted, make_fit

REPEATS = 3  # of a fit without gradient steps, which takes less than a second; the median counts


class MeasuringSuite:
    """A suite whose run trains nothing itself.

    Args:
        model: The frozen network.
        run: The configuration.
    """

    averaged_losses = 1
    tokenizer = None
    example = None

    def __init__(self, model: nn.Module, run: NewTaskRunConfig):
        self.model, self.run = model, run

    @property
    def trained_model(self) -> nn.Module:
        """Nothing is trained."""
        return nn.Module()

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Do nothing."""

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Raise an error: nothing is trained."""
        raise AssertionError("a suite that only measures has no training step")

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Do nothing."""

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def extra_modules(self) -> nn.Module | None:
        """Return None: no module is saved."""
        return None


class NewTaskSuite(MeasuringSuite):
    """One method on the new tasks of one seed.

    Args:
        run: The configuration.
    """

    def __init__(self, run: NewTaskRunConfig):
        self.items = load_items(run.suite, run.data_root)
        self.backbone = load_network(run.suite)
        self.learner: MetaLearner | None = None
        self.training: Cost | None = None
        if run.learner is not None:
            self.learner, self.training = meta_trained(run, self.items, self.backbone)
        elif not run.steps:
            self.learner = MetaLearner(self.backbone, adapter=None)  # its features, without any training
        super().__init__(self.backbone.model, run)

    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return, for each task, its accuracy and what it took; the mean accuracy; what the meta-training took."""
        tasks = {name: new_task(self.items, name, self.run) for name in self.run.tasks}
        self._warm_up(next(iter(tasks.values())))
        by_task = {name: self._score(task) for name, task in tasks.items()}
        return {
            "tasks": by_task,
            "mean": statistics.fmean(scores["accuracy"] for scores in by_task.values()),
            "training": None if self.training is None else dataclasses.asdict(self.training),
        }

    def _warm_up(self, task: NewTask) -> None:
        """Fit with one step, so that no imports are measured."""
        run = dataclasses.replace(self.run, steps=min(self.run.steps, 1))
        make_fit(run, self.backbone, self.learner)(task).predict(task.queries[:2])

    def _score(self, task: NewTask) -> dict[str, Any]:
        fitted, cost = self._fit(task)
        predicted, of_predictions = measured(lambda: fitted.predict(task.queries))
        return {
            "accuracy": float((np.asarray(predicted) == np.array(task.query_labels)).mean()),
            **dataclasses.asdict(cost),
            "seconds_of_100": 100 * of_predictions.seconds / len(task.queries),
            "bytes": fitted.bytes(),
        }

    def _fit(self, task: NewTask) -> tuple[Fitted, Cost]:
        """Return what the method made of a support set, and the cost of the fit with the median wall time."""
        outcomes = []
        for _ in range(1 if self.run.steps else REPEATS):
            fit = make_fit(self.run, self.backbone, self.learner)  # before the clock starts
            torch.manual_seed(self.run.seed)
            outcomes.append(measured(functools.partial(fit, task)))
        return sorted(outcomes, key=lambda outcome: outcome[1].seconds)[len(outcomes) // 2]


def load(run: NewTaskRunConfig) -> MeasuringSuite:
    """Load the suite of a run."""
    if run.suite == THROUGHPUT:
        from metalora_papers.new_task.throughput import ThroughputSuite

        return ThroughputSuite(run)
    return NewTaskSuite(run)
