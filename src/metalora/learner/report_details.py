"""What a page shows of an evaluation in addition to its scores: probabilities, confusions, nearest neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalora._util.report_page import Band, Cell
from metalora.learner.data import TaskPool
from metalora.learner.evaluation import EpisodeFeatures, TestEpisode
from metalora.learner.neighbour_pictures import neighbour_rows
from metalora.learner.readouts import FittedReadout
from metalora.learner.readouts.calibration import sums_by_confidence
from metalora.learner.report import EPISODES, episodes_of_report
from metalora.learner.splits import Split

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

BINS = 10  # of probabilities, as in the expected calibration error
MAX_NEIGHBOUR_TASKS = 12  # the pictures of more tasks would make the file too large


@dataclass(frozen=True)
class Confusion:
    """What the classes of a task are taken for, over all episodes.

    Attributes:
        classes: The classes, in their order in the data.
        counts: Number of queries of each true class (row) that are predicted as each class (column).
    """

    classes: list[str]
    counts: list[list[int]]


@dataclass
class Details:
    """What a page shows of the episodes.

    Attributes:
        confidence: Probability of each predicted class, (m,), over all episodes.
        confidence_before: The same before the temperature, (m,); None if a readout has none.
        right: Whether the predicted class is the true one, (m,).
        confusions: The confusions of each task.
        neighbours: For the first tasks, the rows of a query and its neighbours before and after.
    """

    confidence: Tensor
    confidence_before: Tensor | None
    right: Tensor
    confusions: dict[str, Confusion]
    neighbours: dict[str, list[list[Cell]]]

    @property
    def bands(self) -> list[Band]:
        """The predictions by their probability."""
        return bands_of(self.confidence, self.right)

    @property
    def bands_before(self) -> list[Band]:
        """The predictions by their probability before the temperature; none if a readout has no temperature."""
        return [] if self.confidence_before is None else bands_of(self.confidence_before, self.right)


def bands_of(confidence: Tensor, right: Tensor) -> list[Band]:
    """Return the predictions in ten ranges of their probability.

    Args:
        confidence: Probability of each predicted class, (m,).
        right: Whether it is the true class, (m,).

    Example:
        >>> bands_of(torch.tensor([0.75, 0.75]), torch.tensor([True, False]))[7]
        Band(low=0.7, high=0.8, count=2, probability=0.75, right=0.5)
    """
    bands = []
    for number, (count, probability, rights) in enumerate(sums_by_confidence(confidence, right, BINS).tolist()):
        of_each = max(count, 1)
        ends = number / BINS, (number + 1) / BINS
        bands.append(Band(*ends, int(count), probability / of_each, rights / of_each))
    return bands


@dataclass
class _Predictions:
    """The predictions of all episodes so far."""

    confidence: list[Tensor] = field(default_factory=list)
    before: list[Tensor | None] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)
    pairs: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)
    neighbours: dict[str, list[list[Cell]]] = field(default_factory=dict)

    def add(self, features: EpisodeFeatures, episode: TestEpisode, names: Sequence[str]) -> None:
        """Add the predictions of an episode, whose classes have these names."""
        fitted, queries = features.fitted(episode)
        logits = fitted.logits(queries)
        probability, predicted = logits.softmax(1).cpu().max(1)
        self.confidence.append(probability)
        self.before.append(_confidence_before(fitted, logits))
        self.right.append(predicted == episode.query_labels)
        pairs = self.pairs.setdefault(episode.task, {})
        for true, guess in zip(episode.query_labels.tolist(), predicted.tolist(), strict=True):
            pair = names[true], names[guess]
            pairs[pair] = pairs.get(pair, 0) + 1
        if episode.task not in self.neighbours and len(self.neighbours) < MAX_NEIGHBOUR_TASKS:
            self.neighbours[episode.task] = neighbour_rows(features, episode, fitted, queries, names)


def _confidence_before(fitted: FittedReadout, logits: Tensor) -> Tensor | None:
    """Return the probability of the predicted classes before the temperature, (m,), of logits (m, classes)."""
    if fitted.temperature is None:
        return None
    return (logits * fitted.temperature).softmax(1).amax(1).cpu()


@torch.no_grad()
def collect(
    learner: MetaLearner, split: Split, episodes: int = EPISODES, features: EpisodeFeatures | None = None
) -> Details:
    """Run the episodes of a report again and keep what a page shows.

    Args:
        learner: The learner.
        split: What the report was made of.
        episodes: Episodes of a task.
        features: Features of the pools that were kept, if some are known.
    """
    drawn = episodes_of_report(learner, split, episodes)
    features = features or EpisodeFeatures(learner, split.kept)
    predictions = _Predictions()
    for episode in drawn:
        predictions.add(features, episode, _class_names(split.kept[episode.pool], episode))
    columns = {name: split.kept[number].columns[name] for number, name in split.tasks}
    confusions = {
        task: _confusion([str(value) for value in columns[task].classes], pairs)
        for task, pairs in predictions.pairs.items()
    }
    before = [confidence for confidence in predictions.before if confidence is not None]
    is_known = before and len(before) == len(drawn)
    return Details(
        torch.cat(predictions.confidence) if drawn else torch.empty(0),
        torch.cat(before) if is_known else None,
        torch.cat(predictions.right) if drawn else torch.empty(0, dtype=torch.bool),
        confusions,
        predictions.neighbours,
    )


def _class_names(pool: TaskPool, episode: TestEpisode) -> list[str]:
    """Return the names of the classes of an episode."""
    column = pool.columns[episode.task]
    names = [""] * episode.classes
    for row, label in zip(episode.support.tolist(), episode.support_labels.tolist(), strict=True):
        names[label] = str(column.classes[int(column.codes[row])])
    return names


def _confusion(names: Sequence[str], pairs: dict[tuple[str, str], int]) -> Confusion:
    """Return the confusions of pairs of a true and a predicted class; classes that never occur are left out."""
    occurring = {name for pair in pairs for name in pair}
    classes = [name for name in dict.fromkeys(names) if name in occurring]
    return Confusion(classes, [[pairs.get((true, guess), 0) for guess in classes] for true in classes])
