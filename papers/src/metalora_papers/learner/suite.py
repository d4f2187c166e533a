"""A run of a learner as a `metalora_papers.suite.Suite`: episodes judge the readout that a support set gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.learner.features import StageFeatures, batch_size, rows_of
from metalora.learner.generators import Generator, SupportSet, make_generator
from metalora.learner.meta_training import EpisodeLoss
from metalora.learner.peers import LAST, PEERS, STAGES, peer_predictions
from metalora.learner.readouts import Readout, Targets, make_readout
from metalora.learner.report import expected_calibration_error
from metalora_papers.learner.config import LearnerRunConfig
from metalora_papers.learner.suites import LabelledEpisode, LearnerData
from metalora_papers.statistics import right_counts

READOUT = "readout"
FORWARD_SIZE = 128  # inputs of one forward pass when a test episode is scored


class LearnerSuite:
    """One backbone, one adapter, one readout.

    Args:
        data: The data of the suite.
        run: The configuration.
    """

    averaged_losses = 50
    tokenizer = None

    def __init__(self, data: LearnerData, run: LearnerRunConfig):
        self.data, self.run = data, run
        self.readout: Readout = make_readout(run.readout)
        self.readout.requires_grad_(run.adapter is not None)
        self.features: StageFeatures | None = None
        self.generator: Generator | None = None
        self._modules = nn.ModuleDict({"readout": self.readout})
        self._step_loss: EpisodeLoss | None = None

    @property
    def model(self) -> nn.Module:
        """The frozen backbone."""
        return self.data.model

    @property
    def trained_model(self) -> nn.Module:
        """The readout, and the generator of a generated adapter, which are trained with the adapter."""
        return self._modules

    @property
    def example(self) -> Any:
        """Inputs from which `attach` learns the width of the features of a condition."""
        return self.data.calibration_batches()[0]

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Watch the stages of the network, and standardise the features that a generated adapter is made from."""
        self.features = StageFeatures(self.model, adapter, hidden=self.run.hidden_statistics)
        self.generator = make_generator(self.run.generator, adapter)
        if self.generator is not None:
            self._modules["generator"] = self.generator
        if training and adapter is not None:
            if adapter.conditional:
                adapter.calibrate(self.data.calibration_batches())
            run = self.run
            self._step_loss = EpisodeLoss(
                self.features,
                self.readout,
                self.data.source(self.features, run.label_sets),
                self.generator,
                penalty=run.train.penalty,
                static_steps=run.static_steps,
                forwards=run.forwards,
            )
        self.readout.train(training and adapter is not None)

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the loss of one draw of episodes."""
        assert self._step_loss is not None, "without an adapter nothing is trained"
        return self._step_loss(step)

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Record nothing."""

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Report nothing in addition to the scores."""
        return {}

    def extra_modules(self) -> nn.Module:
        """The readout and the generator."""
        return self._modules

    # ---- evaluation ------------------------------------------------------------------------------------------------
    @property
    def tasks(self) -> tuple[str, ...]:
        """All notions that are scored."""
        return (*self.data.trained, *self.data.held_out)

    @torch.no_grad()
    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the accuracies of the readout, of the controls and of the peers, by task, and the calibration."""
        self.readout.eval()
        self._kept: dict[str, dict[int, Tensor]] = {}  # features of items that several episodes share
        scores: dict[str, dict[str, list[float]]] = {}
        confidences: dict[str, list[Tensor]] = {"trained": [], "held_out": []}
        seconds = []
        for task in self.tasks:
            for number in range(self.run.test_episodes):
                episode = self.data.test_episode(task, number)
                started = time.perf_counter()
                probabilities, frozen = self._readout_probabilities(adapter, episode)
                seconds.append(time.perf_counter() - started)
                group = "trained" if task in self.data.trained else "held_out"
                right = probabilities.argmax(1) == episode.query_labels
                confidences[group].append(torch.stack([probabilities.amax(1), right.float()]))
                accuracies = {READOUT: float(right.double().mean())}
                if adapter is None:
                    accuracies |= self._peers(episode, frozen)
                for name, value in accuracies.items():
                    scores.setdefault(name, {}).setdefault(task, []).append(value)
        results: dict[str, Any] = {name: self._summary(by_task) for name, by_task in scores.items()}
        results["nested"] = self._nested(scores)
        results["calibration_error"] = {
            group: expected_calibration_error(*torch.cat(values, 1)) for group, values in confidences.items() if values
        }
        results["seconds_per_task"] = float(np.median(seconds))
        return results

    def _readout_probabilities(self, adapter: Adapter | None, episode: LabelledEpisode) -> tuple[Tensor, Tensor]:
        """Return the probabilities of the queries (m, classes), and the frozen statistics of all items (n + m, d)."""
        assert self.features is not None
        frozen = self._features(self.features.frozen, "frozen", episode)
        condition = None
        if self.generator is not None:
            labels = episode.support_labels
            support = SupportSet(episode.support, frozen[: len(labels)], labels)
            condition = self.generator(self.features, self.readout, support)

        def adapted(inputs: Any) -> Tensor:
            assert self.features is not None
            return self.features.adapted(inputs, condition)

        phi = torch.cat([frozen, self._features(adapted, "adapted" if condition is None else None, episode)], 1)
        count, classes = len(episode.support_labels), int(episode.support_labels.max()) + 1
        targets = Targets.classes(episode.support_labels, classes)
        fitted = self.readout.fit(phi[:count], targets, frozen_width=frozen.shape[1])
        return fitted.logits(phi[count:]).softmax(1), frozen

    def _features(self, function: Callable[[Any], Tensor], kind: str | None, episode: LabelledEpisode) -> Tensor:
        """Return features of the support set, then of the queries, (n + m, d); none is computed twice.

        Args:
            function: Inputs -> features.
            kind: Name of the features, under which they are kept; None: they depend on the episode.
            episode: The episode.
        """
        sides = (episode.support, episode.support_rows), (episode.query, episode.query_rows)
        return torch.cat([self._of_side(function, kind, inputs, rows) for inputs, rows in sides])

    def _of_side(self, function: Callable[[Any], Tensor], kind: str | None, inputs: Any, rows: Tensor | None) -> Tensor:
        if kind is None or rows is None:
            return self._in_batches(function, inputs)
        kept = self._kept.setdefault(kind, {})
        new = [position for position, row in enumerate(rows.tolist()) if row not in kept]
        if new:
            features = self._in_batches(function, rows_of(inputs, torch.tensor(new)))
            kept.update(zip(rows[new].tolist(), features, strict=True))
        return torch.stack([kept[row] for row in rows.tolist()])

    def _in_batches(self, function: Callable[[Any], Tensor], inputs: Any) -> Tensor:
        rows = torch.arange(batch_size(inputs)).split(FORWARD_SIZE)
        return torch.cat([function(rows_of(inputs, chunk)) for chunk in rows])

    def _peers(self, episode: LabelledEpisode, frozen: Tensor) -> dict[str, float]:
        """Return the accuracy of every peer that needs no training."""
        assert self.features is not None
        last = self._features(self.features.last_layer, "last", episode)
        matrices = {STAGES: frozen.numpy(), LAST: last.numpy()}
        labels, truth = episode.support_labels.numpy(), episode.query_labels.numpy()
        accuracies = {}
        for name, kind in PEERS:
            matrix = matrices[kind]
            predicted = peer_predictions(name, matrix[: len(labels)], labels, matrix[len(labels) :])
            accuracies[f"{name}, {kind}"] = float((predicted == truth).mean())
        return accuracies

    def _summary(self, by_task: dict[str, list[float]]) -> dict[str, Any]:
        means = {task: sum(values) / len(values) for task, values in by_task.items()}
        trained = [means[name] for name in self.data.trained]
        held_out = [means[name] for name in self.data.held_out]
        return {
            "trained_mean": sum(trained) / len(trained) if trained else None,
            "held_out_mean": sum(held_out) / len(held_out) if held_out else None,
            "per_task": means,
            "episodes": by_task,
        }

    def _nested(self, scores: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
        """Return the accuracy by episode, for intervals; episode k of a mean is number k of each of its tasks."""
        counts = []
        for name, by_task in scores.items():
            for metric, tasks in (("trained_mean", self.data.trained), ("held_out_mean", self.data.held_out)):
                if tasks:
                    episodes = zip(*(by_task[task] for task in tasks), strict=True)
                    accuracies = [sum(values) / len(tasks) for values in episodes]
                    counts.append(right_counts(f"{name}.{metric}", accuracies, self.run.test_query * len(tasks)))
        return counts
