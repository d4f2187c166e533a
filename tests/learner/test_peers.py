"""What a user would pick instead: the same predictions as scikit-learn's own estimators."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from metalora.learner.peers import CLASSIFIERS, WideLDA, peer_predictions


def example(features: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=60)
    centres = rng.normal(size=(classes, features)) * 0.3
    return centres[labels] + rng.normal(size=(60, features)), labels, rng.normal(size=(50, features))


@pytest.mark.parametrize(("features", "classes"), [(12, 2), (80, 3), (200, 5)])
def test_the_discriminant_is_that_of_scikit_learn(features: int, classes: int) -> None:
    x, y, queries = example(features, classes)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x, y)
    ours = WideLDA().fit(x, y)
    scores = queries @ ours.coefficients.T + ours.intercept
    differences = scores - scores[:, :1]
    if classes == 2:
        assert np.allclose(differences[:, 1], reference.decision_function(queries), atol=1e-8)
    else:
        expected = reference.decision_function(queries)
        assert np.allclose(differences, expected - expected[:, :1], atol=1e-8)


def test_a_constant_feature_changes_nothing() -> None:
    x, y, queries = example(40, 3)
    with_constant = [np.column_stack([part, np.full(len(part), 7.0)]) for part in (x, queries)]
    plain = WideLDA().fit(x, y).predict(queries)
    assert (WideLDA().fit(with_constant[0], y).predict(with_constant[1]) == plain).mean() > 0.95


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_peers_learn_what_is_there(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    x = rng.normal(size=(60, 30)) + 3 * labels[:, None] * (np.arange(30) < 5)
    assert (peer_predictions(name, x[:40], labels[:40], x[40:]) == labels[40:]).mean() > 0.9


def test_features_are_standardised_by_the_support_set() -> None:
    x, y, queries = example(30, 2)
    scale = np.exp(np.linspace(-8, 8, 30))
    scaler = StandardScaler().fit(x)
    reference = CLASSIFIERS["RBF-SVM"]().fit(scaler.transform(x), y).predict(scaler.transform(queries))
    assert (peer_predictions("RBF-SVM", x * scale, y, queries * scale) == reference).all()
