"""Classifiers with the interface of scikit-learn: `cross_val_score`, `Pipeline` and `GridSearchCV` take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner
    from metalora.learner.task import AdaptedTask

Array = np.ndarray[Any, Any]


class LearnerClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose `fit` adapts a learner to a task.

    Args:
        learner: A trained learner. All copies that scikit-learn makes share it, since `fit` does not change it.

    Attributes:
        task_: The task, after `fit`.
        classes_: Its classes.

    Example:
        >>> from torch import nn
        >>> from metalora.learner import MetaLearner
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 8)).astype("float32")
        >>> y = np.where(x[:, 0] > 0, "yes", "no")
        >>> learner = MetaLearner(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), adapter=None)
        >>> LearnerClassifier(learner).fit(x, y).score(x, y) > 0.8
        True
    """

    def __init__(self, learner: MetaLearner):
        self.learner = learner

    def fit(self, X: Sequence[Any], y: Sequence[Any]) -> LearnerClassifier:  # noqa: N803 (the names of scikit-learn)
        """Adapt the learner to labelled inputs: arrays, paths of pictures, or texts."""
        self.task_ = self.learner.adapt(X, y, kind="classes")
        self.classes_ = self.task_.classes_
        return self

    def predict(self, X: Sequence[Any]) -> Array:  # noqa: N803
        """Return the class of each input, (m,)."""
        labels: Array = self._fitted().predict(X)
        return labels

    def predict_proba(self, X: Sequence[Any]) -> Array:  # noqa: N803
        """Return the probability of each class, (m, classes)."""
        return self._fitted().predict_proba(X)

    def _fitted(self) -> AdaptedTask:
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self, "task_")
        task: AdaptedTask = self.task_
        return task

    def __sklearn_clone__(self) -> LearnerClassifier:
        return LearnerClassifier(self.learner)
