"""Classifiers with the interface of scikit-learn: `cross_val_score`, `Pipeline` and `GridSearchCV` take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from metalora.learner.readouts import FittedReadout, Targets, make_readout

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner
    from metalora.learner.task import AdaptedTask

Array = np.ndarray[Any, Any]
DEFAULT_READOUT = "kernel-ridge"


class LearnerClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose `fit` adapts a learner to a task.

    Args:
        learner: A trained learner. All copies that scikit-learn makes share it, since `fit` does not change it. None:
            there is no network, and the readout works on the given features.
        readout: Name of the readout, which starts as it is before any training; None: the readout of the learner, or
            without a learner kernel-ridge.

    Attributes:
        task_: The task, after `fit` with a learner.
        readout_: The readout that the labelled inputs gave, after `fit`.
        classes_: The classes.

    Example:
        >>> from torch import nn
        >>> from metalora.learner import MetaLearner
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(40, 8)).astype("float32")
        >>> y = np.where(x[:, 0] > 0, "yes", "no")
        >>> learner = MetaLearner(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), adapter=None)
        >>> LearnerClassifier(learner).fit(x, y).score(x, y) > 0.8
        True
        >>> LearnerClassifier(readout="lda").fit(x, y).classes_.tolist()
        ['no', 'yes']
    """

    task_: AdaptedTask
    readout_: FittedReadout

    def __init__(self, learner: MetaLearner | None = None, readout: str | None = None):
        self.learner = learner
        self.readout = readout

    def fit(self, X: Sequence[Any], y: Sequence[Any]) -> LearnerClassifier:  # noqa: N803 (the names of scikit-learn)
        """Adapt to labelled inputs: arrays, paths of pictures, or texts; without a learner, features (n, d).

        Raises:
            ValueError: Inputs and labels do not fit each other, or there are fewer than two classes.
        """
        if self.learner is None:
            return self._fit_features(X, y)
        if self._takes_arrays:
            X, y = _validated(self, X, y, reset=True)  # noqa: N806
            check_classification_targets(y)
        self.task_ = _with_readout(self.learner.adapt(X, y, kind="classes"), X, self.readout)
        self.readout_ = self.task_.readout
        self.classes_ = self.task_.classes_
        return self

    def _fit_features(self, x: Any, y: Any) -> LearnerClassifier:
        features, labels = _validated(self, x, y, reset=True)
        check_classification_targets(labels)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]!r}; expected at least two classes")
        targets = Targets.classes(torch.tensor(codes.reshape(-1)), len(self.classes_))
        readout = make_readout(self.readout or DEFAULT_READOUT).eval()
        self.readout_ = readout.fit(torch.tensor(features), targets)
        return self

    def predict(self, X: Sequence[Any]) -> Array:  # noqa: N803
        """Return the class of each input, (m,)."""
        check_is_fitted(self, "readout_")
        labels: Array
        if self.learner is not None:
            labels = self.task_.predict(self._checked(X))
        else:
            labels = self.classes_[self._logits(X).argmax(1).numpy()]
        return labels

    def predict_proba(self, X: Sequence[Any]) -> Array:  # noqa: N803
        """Return the probability of each class, (m, classes)."""
        check_is_fitted(self, "readout_")
        if self.learner is not None:
            return self.task_.predict_proba(self._checked(X))
        probabilities: Array = self._logits(X).softmax(1).numpy()
        return probabilities

    @property
    def _takes_arrays(self) -> bool:
        return self.learner is None or self.learner.backbone.preprocessor.kind == "arrays"

    def _checked(self, x: Any) -> Any:
        """Return inputs; arrays are checked against those of `fit`."""
        return _validated(self, x, None, reset=False) if self._takes_arrays else x

    @torch.no_grad()
    def _logits(self, x: Any) -> torch.Tensor:
        return self.readout_.logits(torch.tensor(self._checked(x)))

    def __sklearn_clone__(self) -> LearnerClassifier:
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = not self._takes_arrays
        return tags


def _with_readout(task: AdaptedTask, inputs: Sequence[Any], name: str | None) -> AdaptedTask:
    """Return a task with another readout of the same support set; the task itself if no readout is named."""
    if name is None:
        return task
    readout = make_readout(name).eval().to(task.learner.device)
    support, targets = task.features(inputs), task.labels.targets
    assert targets is not None
    with torch.no_grad():
        fitted = readout.fit(support, targets, frozen_width=task.learner.frozen_width)
    return type(task)(task.learner, fitted, task.labels, task.stored_condition, task.factors, task.support)


def _validated(estimator: LearnerClassifier, x: Any, y: Any, reset: bool) -> Any:
    """Return arrays (n, ...) in float64, and the labels if there are any, as scikit-learn checks them."""
    allow_nd = estimator.learner is not None
    # a copy, since torch cannot take an array that is not writable
    settings: dict[str, Any] = {"dtype": np.float64, "reset": reset, "allow_nd": allow_nd, "copy": True}
    if reset:
        settings |= {"y": y, "ensure_min_samples": 2}
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:  # before 1.6 it was a method
        return estimator._validate_data(x, **settings)
    return validate_data(estimator, x, **settings)
