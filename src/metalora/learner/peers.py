"""What a user would pick instead: classifiers of scikit-learn on the features of the frozen network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Predict = Callable[[Array, Array, Array], Array]  # support (n, d), classes (n,), queries (m, d) -> classes (m,)

NEIGHBOURS = 5
LEAST_VARIANCE = 1e-9  # of a standardised feature; repeated examples have none beside that of the class means
LAST, STAGES = "last layer", "all stages"


def _neighbours() -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(NEIGHBOURS, metric="cosine")


class WideLDA:
    """LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto") of scikit-learn, for more features than examples.

    Its covariance is diagonal plus low rank, S = D + U U^T, since each class adds its shrunk covariance. Woodbury's
    identity then solves S x = mean in O(n^2 d) where scikit-learn needs O(d^3): milliseconds instead of seconds.
    """

    def fit(self, x: Array, y: Array) -> WideLDA:
        """Fit to features (n, d) and classes (n,)."""
        from sklearn.covariance import ledoit_wolf_shrinkage

        self.classes_, counts = np.unique(y, return_counts=True)
        priors = counts / counts.sum()
        diagonal, low_rank, means = np.zeros(x.shape[1]), [], []
        for label, prior in zip(self.classes_, priors, strict=True):
            members = x[y == label]
            means.append(members.mean(0))
            centred = members - means[-1]
            scale = centred.std(0)
            scale[scale == 0] = 1
            standardised = centred / scale
            shrinkage = ledoit_wolf_shrinkage(standardised)
            diagonal += prior * shrinkage * np.square(standardised).sum() / standardised.size * scale**2
            low_rank.append(centred * np.sqrt(prior * (1 - shrinkage) / len(members)))
        rows = np.concatenate(low_rank)  # U^T, (n, d)
        matrix = np.stack(means)  # (classes, d)
        diagonal = np.maximum(diagonal, LEAST_VARIANCE)
        weighted = rows / diagonal
        inner = np.eye(len(rows)) + weighted @ rows.T
        by_diagonal = matrix / diagonal
        self.coefficients = by_diagonal - np.linalg.solve(inner, weighted @ matrix.T).T @ weighted
        self.intercept = np.log(priors) - 0.5 * (matrix * self.coefficients).sum(1)
        return self

    def predict(self, x: Array) -> Array:
        """Return the classes of features (m, d)."""
        labels: Array = self.classes_[(x @ self.coefficients.T + self.intercept).argmax(1)]
        return labels


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1.0, max_iter=1000)


def _svm() -> Any:
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma="scale")


CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "k-NN": _neighbours,
    "LDA": WideLDA,
    "logistic regression": _logistic,
    "RBF-SVM": _svm,
}
PEERS = tuple((name, features) for name in CLASSIFIERS for features in (LAST, STAGES))


def fit_peer(name: str, support: Array, classes: Array) -> FittedPeer:
    """Fit a peer to a support set, whose features are standardised.

    Args:
        name: A key of `CLASSIFIERS`.
        support: Features of the support set, (n, d).
        classes: Its classes, (n,).

    Returns:
        The peer, which predicts the classes of further features.

    Example:
        >>> x = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.2]] * 3)
        >>> fit_peer("LDA", x, np.array([0, 0, 1, 1] * 3)).predict(x[:4])
        array([0, 0, 1, 1])
    """
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(support.astype(float))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a logistic regression that stops early
        classifier = CLASSIFIERS[name]().fit(scaler.transform(support), classes)
    return FittedPeer(scaler, classifier)


class FittedPeer(NamedTuple):
    """A classifier of scikit-learn with the standardisation of its features.

    Attributes:
        scaler: The standardisation.
        classifier: The classifier of standardised features.
    """

    scaler: Any
    classifier: Any

    def predict(self, queries: Array) -> Array:
        """Return the classes of features (m, d), (m,)."""
        predicted: Array = self.classifier.predict(self.scaler.transform(queries))
        return predicted


def peer_predictions(name: str, support: Array, classes: Array, queries: Array) -> Array:
    """Return the classes that a peer predicts, (m,), after standardising the features by the support set.

    Args:
        name: A key of `CLASSIFIERS`.
        support: Features of the support set, (n, d).
        classes: Its classes, (n,).
        queries: Features of the queries, (m, d).
    """
    return fit_peer(name, support, classes).predict(queries)
