"""A run of a learner as a `metalora_papers.suite.Suite`: episodes judge the readout that a support set gives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach, detach
from metalora.bench.device import synchronize
from metalora.config import AdapterConfig
from metalora.learner.features import StageFeatures, batch_size, rows_of
from metalora.learner.generators import Generator, SupportSet, make_generator
from metalora.learner.meta_training import EpisodeLoss
from metalora.learner.peers import LAST, PEERS, STAGES, peer_predictions
from metalora.learner.readouts import FittedReadout, Readout, Targets, make_readout
from metalora.learner.readouts.calibration import error_of_confidence
from metalora_papers.learner.config import LearnerRunConfig
from metalora_papers.learner.fitted import choose, fit_and_score, make_peer, validation_episodes
from metalora_papers.learner.line_up import LORA_READOUT
from metalora_papers.learner.suites import LabelledEpisode, LearnerData
from metalora_papers.metalora.episode_suite import UNSEEN
from metalora_papers.suite import device_of

READOUT = "readout"
READOUT_ALONE = "readout alone"  # without the forward pass
TIMED_TASKS = 3
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
        self.readout: Readout = make_readout(run.readout).to(device_of(data.model))
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
            self._modules["generator"] = self.generator.to(device_of(self.model))
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
                static_parts=run.static_steps * run.train.accumulate,
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
        """Count the parameters of a generated adapter whose core no mapping net makes: without it, with what does."""
        if adapter is None or self.generator is None or self.generator.name == "mapping-net":
            return {}
        unused = sum(parameter.numel() for parameter in adapter.required_conditioner().parameters())
        own = sum(parameter.numel() for parameter in self.generator.parameters())
        return {"num_params": adapter.num_params() - unused + own}

    def extra_modules(self) -> nn.Module:
        """The readout and the generator."""
        return self._modules

    # ---- evaluation ------------------------------------------------------------------------------------------------
    @property
    def tasks(self) -> tuple[str, ...]:
        """All notions that are scored."""
        return (*self.data.trained, *self.data.held_out)

    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the accuracies of the readout and of the peers, by task, the calibration and the seconds of a task."""
        self.readout.eval()
        self._kept: dict[str, dict[int, Tensor]] = {}  # features of items that several episodes share
        scores: dict[str, dict[str, list[float]]] = {}
        confidences: dict[str, list[Tensor]] = {"trained": [], "held_out": []}
        for task in self.tasks:
            group = "trained" if task in self.data.trained else "held_out"
            for number in range(self.run.test_episodes):
                episode = self.data.test_episode(task, number)
                accuracies, confidence = self._score(adapter, episode)
                confidences[group].append(confidence)
                for name, value in accuracies.items():
                    scores.setdefault(name, {}).setdefault(task, []).append(value)
        results: dict[str, Any] = {name: self._summary(by_task) for name, by_task in scores.items()}
        results["trained"] = list(self.data.trained)
        results["calibration_error"] = {
            group: round(error_of_confidence(*torch.cat(values, 1)), 6)
            for group, values in confidences.items()
            if values
        }
        results["seconds"] = self._seconds()
        if self.run.peers:
            results |= self._fitted_peers(results["seconds"])
        return results

    def _fitted_peers(self, seconds: dict[str, float]) -> dict[str, Any]:
        """Return the accuracies of the peers that are trained on every support set, and what was chosen for them.

        Args:
            seconds: Takes the median seconds of each, and of a LoRA and the readout in the same process.
        """
        run = self.run
        results: dict[str, Any] = {"chosen": {}}
        chosen_on = validation_episodes(self.data)
        for name in run.peers:
            peer = make_peer(name, self.model, run.peer_adapter)
            setting = choose(peer, chosen_on)
            results["chosen"][name] = dataclasses.asdict(setting)
            accuracies: dict[str, list[float]] = {}
            taken = []
            for task, number in product(self.tasks, range(run.test_episodes)):
                accuracy, duration = fit_and_score(peer, setting, self.data.test_episode(task, number), number)
                accuracies.setdefault(task, []).append(accuracy)
                taken.append(duration)
            results[name] = self._summary(accuracies)
            seconds[name] = float(np.median(taken))
        if run.peer_adapter is not None:
            seconds[LORA_READOUT] = self._lora_seconds(run.peer_adapter)
        return results

    def _lora_seconds(self, config: AdapterConfig) -> float:
        """Return the seconds that a LoRA in the network and the readout need for a support set."""
        frozen_features = self.features
        adapter = attach(self.model, config)
        self.features = StageFeatures(self.model, adapter)
        try:
            return self._seconds()[READOUT]
        finally:
            self.features.remove()
            detach(self.model)
            self.features = frozen_features

    @torch.no_grad()
    def _score(self, adapter: Adapter | None, episode: LabelledEpisode) -> tuple[dict[str, float], Tensor]:
        """Return the accuracy of the readout and of the peers, and (2, m): confidence and whether it is right."""
        probabilities, frozen = self._readout_probabilities(episode)
        right = (probabilities.argmax(1) == episode.query_labels).float()
        accuracies = {READOUT: float(right.double().mean())}
        if adapter is None and not self.run.peers:
            accuracies |= self._peers(episode, frozen)
        return accuracies, torch.stack([probabilities.amax(1), right])

    @torch.no_grad()
    def _seconds(self) -> dict[str, float]:
        """Return the seconds from a support set to its readout, medians over notions; nothing is reused."""
        assert self.features is not None
        forward, readout = [], []
        for task in self.tasks[:TIMED_TASKS]:
            episode = self.data.test_episode(task, 0)
            synchronize()
            started = time.perf_counter()
            frozen = self._in_batches(self.features.frozen, episode.support)
            phi = torch.cat([frozen, self._adapted(episode, frozen)(episode.support)], 1)
            synchronize()
            forward.append(time.perf_counter() - started)
            self._fit(phi, episode, frozen.shape[1])
            synchronize()
            readout.append(time.perf_counter() - started - forward[-1])
        total = [sum(pair) for pair in zip(forward, readout, strict=True)]
        return {READOUT: float(np.median(total)), READOUT_ALONE: float(np.median(readout))}

    def _adapted(self, episode: LabelledEpisode, frozen: Tensor) -> Callable[[Any], Tensor]:
        """Return what computes statistics of the adapted network, under the condition of the support set if any.

        Args:
            episode: The episode.
            frozen: Frozen statistics of the support set, (n, d).
        """
        assert self.features is not None
        condition = None
        if self.generator is not None:
            support = SupportSet(episode.support, frozen, episode.support_labels)
            condition = self.generator(self.features, self.readout, support)
        return partial(self.features.adapted, condition=condition)

    def _fit(self, support: Tensor, episode: LabelledEpisode, frozen_width: int) -> FittedReadout:
        labels = episode.support_labels
        targets = Targets.classes(labels, int(labels.max()) + 1)
        return self.readout.fit(support, targets, frozen_width=frozen_width, groups=episode.support_groups)

    def _readout_probabilities(self, episode: LabelledEpisode) -> tuple[Tensor, Tensor]:
        """Return the probabilities of the queries (m, classes), and the frozen statistics of all items (n + m, d)."""
        assert self.features is not None
        frozen = self._features(self.features.frozen, "frozen", episode)
        count = len(episode.support_labels)
        adapted = self._adapted(episode, frozen[:count])
        kind = "adapted" if self.generator is None else None
        phi = torch.cat([frozen, self._features(adapted, kind, episode)], 1)
        fitted = self._fit(phi[:count], episode, frozen.shape[1])
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
        matrices = {STAGES: frozen.cpu().numpy(), LAST: last.cpu().numpy()}
        labels, truth = episode.support_labels.cpu().numpy(), episode.query_labels.cpu().numpy()
        accuracies = {}
        for name, kind in PEERS:
            matrix = matrices[kind]
            predicted = peer_predictions(name, matrix[: len(labels)], labels, matrix[len(labels) :])
            accuracies[f"{name}, {kind}"] = float((predicted == truth).mean())
        return accuracies

    def _summary(self, by_task: dict[str, list[float]]) -> dict[str, Any]:
        means = {task: fmean(values) for task, values in by_task.items()}
        trained = [means[name] for name in self.data.trained]
        held_out = [means[name] for name in self.data.held_out if name != UNSEEN]
        return {
            "trained_mean": fmean(trained) if trained else None,
            "held_out_mean": fmean(held_out) if held_out else None,
            "per_task": means,
            "episodes": by_task,
        }
