"""The classifier in scikit-learn: its own checks, grids, pipelines, and file paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from metalora.learner import ImagePreprocessor, MetaLearner
from metalora.learner.classifier import LearnerClassifier

READOUTS = ["kernel-ridge", "lda", "logistic", "prototype", "knn"]
EXPECTED_FAILURES: dict[str, str] = {}
EXPECTED_FAILURES_OF_A_NETWORK = {
    "check_estimators_overwrite_params": "the learner is the same object, but hooks in it have recorded a forward pass",
}


def example(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(3).normal(size=(count, 8)).astype("float32")
    return x, np.where(x[:, 0] > 0, "ripe", "green")


@pytest.fixture(scope="module")
def learner() -> MetaLearner:
    torch.manual_seed(0)
    return MetaLearner(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24)), adapter=None)


class AnyWidth(nn.Module):
    """A network of arrays of any width, since the checks have many: the first 8 numbers, the others as zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded: torch.Tensor = self.layers(nn.functional.pad(x, (0, 8))[:, :8])
        return padded


def of_network() -> LearnerClassifier:
    torch.manual_seed(0)
    classifier: LearnerClassifier = MetaLearner(AnyWidth(), adapter=None).as_classifier()
    return classifier


@pytest.mark.parametrize("readout", [*READOUTS, None], ids=str)
def test_scikit_learns_own_checks(readout: str | None) -> None:
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    if not hasattr(checks, "estimator_checks_generator"):
        pytest.skip("scikit-learn takes a list of expected failures from 1.6 on")
    classifier = of_network() if readout is None else LearnerClassifier(readout=readout)
    expected = EXPECTED_FAILURES_OF_A_NETWORK if readout is None else EXPECTED_FAILURES
    results = checks.check_estimator(classifier, expected_failed_checks=expected, on_skip=None, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert not failed
    assert {result["check_name"] for result in results if result["status"] == "xfail"} == set(expected)


def test_fit_does_not_change_the_learner() -> None:
    x, y = example()
    classifier = of_network()
    assert classifier.learner is not None
    before = classifier.learner.fingerprint
    assert classifier.fit(x, y).learner.fingerprint == before


def test_a_grid_over_readouts(learner: MetaLearner) -> None:
    x, y = example()
    for classifier in (LearnerClassifier(), learner.as_classifier()):
        grid = GridSearchCV(classifier, {"readout": ["lda", "kernel-ridge"]}, cv=3, error_score="raise").fit(x, y)
        assert grid.best_params_["readout"] in ("lda", "kernel-ridge") and grid.best_score_ > 0.7
        assert grid.best_estimator_.learner is classifier.learner


def test_a_pipeline_and_its_clone(learner: MetaLearner) -> None:
    x, y = example()
    pipeline = make_pipeline(StandardScaler(), learner.as_classifier())
    assert clone(pipeline)[-1].learner is learner
    pipeline.set_params(learnerclassifier__readout="prototype")
    assert pipeline.fit(x, y).predict_proba(x).shape == (90, 2)


def test_a_named_readout_is_that_of_the_features(learner: MetaLearner) -> None:
    x, y = example()
    through_network = LearnerClassifier(learner, readout="lda").fit(x, y)
    features = learner.encode(list(x)).numpy()
    alone = LearnerClassifier(readout="lda").fit(features, y)
    assert np.allclose(through_network.predict_proba(x), alone.predict_proba(features), atol=1e-4)


def test_file_paths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths: list[Any] = []
    for number in range(30):
        colour = (220, 40, 40) if number % 2 else (40, 40, 220)
        noise = rng.integers(0, 30, (8, 8, 3))
        Image.fromarray((np.array(colour) + noise).astype("uint8")).save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    learner = MetaLearner(network, adapter=None, preprocessor=ImagePreprocessor(size=(8, 8), resize=8))
    labels = ["red" if number % 2 else "blue" for number in range(30)]
    assert cross_val_score(learner.as_classifier(), paths, labels, cv=3).mean() > 0.9


def test_mistakes() -> None:
    x, y = example()
    with pytest.raises(ValueError, match="did you mean 'lda'"):
        LearnerClassifier(readout="ldaa").fit(x, y)
    with pytest.raises(ValueError, match="one class"):
        LearnerClassifier().fit(x, ["a"] * len(x))
    with pytest.raises(ValueError, match="NaN"):
        LearnerClassifier().fit(np.full_like(x, np.nan), y)
