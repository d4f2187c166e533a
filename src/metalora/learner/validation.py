"""The best state of a training, by the accuracy on inputs that were not trained on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from metalora.learner.evaluation import EpisodeFeatures, draw_test_episodes
from metalora.learner.splits import Split

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

    Attributes:
        history: Number of the step and mean accuracy, of every validation.
    """

    def __init__(self, learner: MetaLearner, split: Split):
        self.learner = learner
        config = learner.config
        self.every, self.patience = config.validate_every, config.patience
        self.history: list[tuple[int, float]] = []
        self._state: dict[str, Any] | None = None
        self._since_best = 0
        tasks = split.tasks[:MAX_TASKS]
        self.episodes = draw_test_episodes(
            split.kept, tasks, EPISODES, config.support, config.query, config.seed + VALIDATION_SEED
        )
        self.features = EpisodeFeatures(learner, split.kept)

    def after_step(self, step: int) -> bool:
        """Validate if it is time to, and return True if the training should stop.

        Args:
            step: Number of the step that has ended, from 0.
        """
        if not self.every or not self.episodes or (step + 1) % self.every:
            return False
        score = self._score()
        if not self.history or score >= max(score for _, score in self.history):
            self._state, self._since_best = self._copy(), 0
        else:
            self._since_best += 1
        self.history.append((step + 1, score))
        return bool(self.patience) and self._since_best >= self.patience

    def _score(self) -> float:
        """Return the mean accuracy over the validation episodes; the modes of the learner stay as they are."""
        learner = self.learner
        assert learner.adapter is not None
        self.features.forget_adapted()
        learner.readout.eval()
        learner.adapter.eval()
        try:
            return sum(self.features.accuracy(episode) for episode in self.episodes) / len(self.episodes)
        finally:
            learner.readout.train()
            learner.adapter.train()

    def _copy(self) -> dict[str, Any]:
        assert self.learner.adapter is not None
        states = {"adapter": self.learner.adapter.state_dict(), "modules": self.learner.trained_modules.state_dict()}
        return copy.deepcopy(states)

    def restore(self) -> None:
        """Give the learner the best state; nothing happens without a validation."""
        if self._state is None:
            return
        assert self.learner.adapter is not None
        self.learner.adapter.load_state_dict(self._state["adapter"])
        self.learner.trained_modules.load_state_dict(self._state["modules"])
