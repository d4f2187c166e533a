"""The report of a learner: its accuracy on tasks that were kept, next to what a user would pick instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metalora._util.processes import of_process_0
from metalora.learner.data import TaskPool
from metalora.learner.evaluation import EpisodeFeatures, TestEpisode, draw_test_episodes
from metalora.learner.peers import LAST, PEERS, STAGES, peer_predictions
from metalora.learner.readouts import Targets
from metalora.learner.readouts.calibration import error_of_confidence
from metalora.learner.splits import Split, named_by_pool

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

LEARNER, FROZEN = "this learner", "the readout, frozen network"
EPISODES = 8
TASKS = {
    True: "tasks that were never trained",
    False: "trained tasks, on inputs that were not trained on,",
    None: "these tasks",
}
NO_RECORD = "A learner has no record of its training inputs: if these are among them, its accuracy here is too high."
REPORT_SEED = 2  # other episodes than those of the validation


@dataclass(frozen=True)
class Score:
    """The accuracy of one method on one task.

    Attributes:
        task: Name of the task.
        held_out: Whether the task was not trained on; None: it is not known, as a learner has no record of its inputs.
        method: Name of the method.
        accuracies: Share of right queries, of every episode.
    """

    task: str
    held_out: bool | None
    method: str
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy over the episodes."""
        return fmean(self.accuracies)

    @property
    def error(self) -> float:
        """Half of the 95 % interval of the mean over the episodes; 0 for a single one."""
        return half_interval(self.accuracies)


@dataclass(frozen=True)
class Report:
    """Scores of a learner and of its peers on the same episodes, with a verdict in words.

    Attributes:
        scores: One for each task and method.
        support: Labelled inputs of an episode.
        calibration_error: Expected calibration error of the learner's probabilities; None if nothing was compared.
        missing: Why nothing was compared, in words that continue a sentence; empty if something was.
    """

    scores: tuple[Score, ...]
    support: int
    calibration_error: float | None
    missing: str = ""

    def means(self, held_out: bool | None = None) -> dict[str, float]:
        """Return the mean accuracy of every method over the tasks.

        Args:
            held_out: Tasks that were held out, those that were trained on, or (None) all tasks.
        """
        chosen = [score for score in self.scores if held_out is None or score.held_out == held_out]
        methods = list(dict.fromkeys(score.method for score in chosen))
        return {
            method: float(np.mean([score.mean for score in chosen if score.method == method])) for method in methods
        }

    def best_peer(self, held_out: bool | None = None) -> str | None:
        """Return the name of the best method other than the learner; None without scores."""
        means = {name: value for name, value in self.means(held_out).items() if name != LEARNER}
        return max(means, key=means.__getitem__) if means else None

    @property
    def verdict(self) -> str:
        """Say in a sentence or two whether the learner is worth it, on held-out tasks if there are any."""
        if not self.scores:
            return f"The learner was not compared, and its calibration was not measured: {self.missing}."
        kinds = [held_out for held_out in (True, False) if self.means(held_out)]
        if not kinds:
            return f"{self._sentence(None)} {NO_RECORD}"
        return " ".join(self._sentence(held_out) for held_out in kinds)

    def _sentence(self, held_out: bool | None) -> str:
        means, peer = self.means(held_out), self.best_peer(held_out)
        assert peer is not None
        tasks = TASKS[held_out]
        gain = 100 * (means[LEARNER] - means[peer])
        margin = 100 * self._margin(held_out, peer)
        numbers = f"{100 * means[LEARNER]:.1f} % against {100 * means[peer]:.1f} % ({peer})"
        if gain > margin:
            return f"On {tasks} this learner beats the best of its peers: {numbers}."
        if gain < -margin:
            return f"On {tasks} this learner does NOT beat {peer}: {numbers}. Use that, or train on more tasks."
        return f"On {tasks} this learner and the best of its peers cannot be told apart: {numbers}, ± {margin:.1f}."

    def _margin(self, held_out: bool | None, peer: str) -> float:
        """Return half of the 95 % interval of the mean difference to a peer, over paired episodes."""
        ours = {s.task: s.accuracies for s in self.scores if s.held_out == held_out and s.method == LEARNER}
        theirs = {s.task: s.accuracies for s in self.scores if s.held_out == held_out and s.method == peer}
        return half_interval(np.concatenate([np.subtract(ours[task], theirs[task]) for task in ours]))

    def table(self) -> list[dict[str, Any]]:
        """Return one row for each method: its mean over trained and over held-out tasks, and every task."""
        rows = []
        for method in dict.fromkeys(score.method for score in self.scores):
            row: dict[str, Any] = {"method": method}
            row["trained"] = self.means(False).get(method)
            row["held out"] = self.means(True).get(method)
            row |= {score.task: score.mean for score in self.scores if score.method == method}
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        means = {"all": self.means(), "trained": self.means(False), "held_out": self.means(True)}
        return {**asdict(self), "verdict": self.verdict, "means": means}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Make a report of what `to_dict` returned."""
        scores = [Score(s["task"], s["held_out"], s["method"], tuple(s["accuracies"])) for s in values["scores"]]
        missing = values.get("missing", "")  # older folders do not have it
        return cls(tuple(scores), values["support"], values["calibration_error"], missing)

    def __repr__(self) -> str:
        return self.verdict


def half_interval(values: Sequence[float] | np.ndarray[Any, Any]) -> float:
    """Return half of the 95 % interval of the mean of values, (n,); 0 for a single one.

    Example:
        >>> round(half_interval([0.5, 0.6, 0.7]), 4)
        0.1132
    """
    if len(values) < 2:
        return 0.0
    return float(1.96 * np.std(values, ddof=1) / len(values) ** 0.5)


def whole_split(pools: Sequence[TaskPool]) -> Split:
    """Return pools as a split that judges with all of them; what was trained on is not known."""
    return Split([], named_by_pool(pools), ())


def evaluate_pools(
    learner: MetaLearner,
    pools: Sequence[TaskPool],
    episodes: int = EPISODES,
    features: EpisodeFeatures | None = None,
) -> Report:
    """Compare a learner with its peers on further pools, whose inputs should not be those of its training.

    Args:
        learner: The learner.
        pools: The pools.
        episodes: Episodes of a task.
        features: Features of these pools, which are kept for a further use; None: for this evaluation only.

    Raises:
        ValueError: No task has enough labels for an episode.
    """
    report = make_report(learner, whole_split(pools), episodes, features)
    if not report.scores:
        raise ValueError("no task has enough labels for an episode: two classes with three support items each")
    return report


def episodes_of_report(learner: MetaLearner, split: Split, episodes: int) -> list[TestEpisode]:
    """Return the episodes of a report, which are the same each time.

    Args:
        learner: The learner, whose configuration has their sizes.
        split: What was trained on and what was kept.
        episodes: Episodes of a task.
    """
    config = learner.config
    seed = config.seed + REPORT_SEED
    return draw_test_episodes(split.kept, split.tasks, episodes, config.support, config.query, seed)


def make_report(
    learner: MetaLearner, split: Split, episodes: int = EPISODES, features: EpisodeFeatures | None = None
) -> Report:
    """Compare a learner with its peers on the inputs that were kept; every method sees the same episodes.

    Several processes that train together get the report of process 0.

    Args:
        learner: The learner.
        split: What was trained on and what was kept.
        episodes: Episodes of a task.
        features: Features of the pools that were kept, if some are known.
    """
    drawn = episodes_of_report(learner, split, episodes)
    features = features or EpisodeFeatures(learner, split.kept)
    accuracies: dict[tuple[str, str], list[float]] = {}
    probabilities, truths = [], []
    for episode in drawn:
        fitted, queries = features.fitted(episode)
        probability = fitted.logits(queries).softmax(1).cpu()
        probabilities.append(probability.max(1))
        truths.append(episode.query_labels)
        predicted = {LEARNER: probability.argmax(1).numpy(), **_peers(learner, features, episode)}
        for method, classes in predicted.items():
            accuracy = float((classes == episode.query_labels.numpy()).mean())
            accuracies.setdefault((episode.task, method), []).append(accuracy)
    scores = [
        Score(task, task in split.held_out if split.trained else None, method, tuple(values))
        for (task, method), values in accuracies.items()
    ]
    if not drawn:
        return of_process_0(Report((), learner.config.support, None, split.without_episode()))
    confidence = torch.cat([values for values, _ in probabilities])
    right = torch.cat([c == t for (_, c), t in zip(probabilities, truths, strict=True)])
    report = Report(tuple(scores), learner.config.support, round(error_of_confidence(confidence, right), 6))
    return of_process_0(report)


def _peers(learner: MetaLearner, features: EpisodeFeatures, episode: TestEpisode) -> dict[str, np.ndarray[Any, Any]]:
    """Return the predicted classes of all peers of an episode."""
    matrices = {STAGES: features.frozen(episode.pool), LAST: features.last_layer(episode.pool)}
    classes = episode.support_labels.numpy()
    predicted = {}
    for name, kind in PEERS:
        matrix = matrices[kind].cpu().numpy()
        predicted[f"{name}, {kind}"] = peer_predictions(name, matrix[episode.support], classes, matrix[episode.query])
    frozen = matrices[STAGES]
    targets = Targets.classes(episode.support_labels.to(frozen.device), episode.classes)
    with torch.no_grad():
        fitted = learner.plain_readout.fit(frozen[episode.support], targets, frozen_width=frozen.shape[1])
        predicted[FROZEN] = fitted.logits(frozen[episode.query]).argmax(1).cpu().numpy()
    return predicted
