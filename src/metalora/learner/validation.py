"""The best state of a training, by the accuracy on inputs that were not trained on."""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from metalora._util.processes import done_by_process_0, of_process_0
from metalora._util.user_warning import warn_user
from metalora.learner.config import LearnerConfig
from metalora.learner.evaluation import EpisodeFeatures, TestEpisode, draw_test_episodes
from metalora.learner.splits import Split
from metalora.training.state_file import read_state, write_state

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

EPISODES = 6  # validation episodes of a task
VALIDATION_SEED = 1
MAX_TASKS = 12


class BestState:
    """Validates a learner while it trains, and keeps the state with the best mean accuracy.

    Args:
        learner: The learner that is trained.
        split: The inputs and tasks that are kept.
        checkpoint: The file of the run's state. What was validated before an interruption is kept next to it.

    Attributes:
        history: Number of the step -> mean accuracy, of every validation.
    """

    def __init__(self, learner: MetaLearner, split: Split, checkpoint: str | Path | None = None):
        self.learner = learner
        config = learner.config
        self.every, self.patience, self.steps = config.validate_every, config.patience, config.steps
        self.history: dict[int, float] = {}
        self._state: dict[str, Any] | None = None
        self.episodes = validation_episodes(split, config)
        self.features = EpisodeFeatures(learner, split.kept)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        saved = done_by_process_0(self._read)
        if saved is not None:
            self.history, self._state = saved["history"], saved["state"]

    def after_step(self, step: int) -> bool:
        """Validate if it is time to, and return True if the training should stop.

        Args:
            step: Number of the step that has ended, from 0.
        """
        if not self.every or not self.episodes or ((step + 1) % self.every and step + 1 != self.steps):
            return False
        self.history[step + 1] = of_process_0(self._score())
        best = max(self.history.values())
        best_step = max(number for number, score in self.history.items() if score == best)
        if best_step == step + 1:
            self._state = self._copy()
        done_by_process_0(self._save)
        return bool(self.patience) and step + 1 - best_step >= self.patience * self.every

    def _save(self) -> None:
        """Write the best state next to the checkpoint, for a run that is interrupted."""
        if self.checkpoint is not None:
            state = {"history": self.history, "state": self._state}
            write_state(best_state_path(self.checkpoint), state, "the best state is not kept")

    def _read(self) -> dict[str, Any] | None:
        """Return what `_save` wrote; None without it, or without the checkpoint that it belongs to."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        path = best_state_path(self.checkpoint)
        return read_state(path) if path.is_file() else None

    def _score(self) -> float:
        """Return the mean accuracy over the validation episodes; the modes of the learner stay as they are."""
        learner = self.learner
        assert learner.adapter is not None
        self.features.forget_adapted()
        learner.readout.eval()
        learner.adapter.eval()
        try:
            return fmean(self.features.accuracy(episode) for episode in self.episodes)
        finally:
            learner.readout.train()
            learner.adapter.train()

    def _copy(self) -> dict[str, Any]:
        assert self.learner.adapter is not None
        states = {"adapter": self.learner.adapter.state_dict(), "modules": self.learner.trained_modules.state_dict()}
        return copy.deepcopy(states)

    def restore(self) -> None:
        """Give the learner the best state, that of process 0 if there are several; nothing without a validation."""
        self._state = of_process_0(self._state)
        if self._state is None:
            return
        assert self.learner.adapter is not None
        self.learner.adapter.load_state_dict(self._state["adapter"])
        self.learner.trained_modules.load_state_dict(self._state["modules"])


def validation_episodes(split: Split, config: LearnerConfig) -> list[TestEpisode]:
    """Return the episodes of every validation, which are the same each time; none if too few inputs are kept.

    Args:
        split: The inputs and tasks that are kept.
        config: The settings of the learner.
    """
    tasks, seed = split.tasks[:MAX_TASKS], config.seed + VALIDATION_SEED
    return draw_test_episodes(split.kept, tasks, EPISODES, config.support, config.query, seed)


def warn_without_validation(split: Split, config: LearnerConfig) -> None:
    """Warn if a training validates nothing, although inputs with labels are kept for it.

    Args:
        split: The inputs and tasks that are kept.
        config: The settings of the learner; without `validate_every`, nobody wants a validation.
    """
    has_labels = any(pool.columns for pool in split.kept + split.too_small)
    if config.validate_every and has_labels and not validation_episodes(split, config):
        warn_user(
            f"fit validates nothing: {split.without_episode()}. The last step is kept instead of the best one, "
            "`patience` stops no training, and accuracy and calibration are not measured; give more labelled inputs, "
            "or a larger holdout_items"
        )


def best_state_path(checkpoint: str | Path) -> Path:
    """Return the file of the best state that belongs to a checkpoint.

    Example:
        >>> best_state_path("runs/training.pt").name
        'training.pt.best'
    """
    path = Path(checkpoint)
    return path.with_name(f"{path.name}.best")
