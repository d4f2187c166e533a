"""The readouts by name."""

from __future__ import annotations

from metalora._util.suggest import check_choice
from metalora.learner.readouts.base import Readout
from metalora.learner.readouts.kernel_ridge import KernelRidge
from metalora.learner.readouts.knn import SoftNeighbours
from metalora.learner.readouts.lda import DiscriminantAnalysis
from metalora.learner.readouts.logistic import LogisticRegression
from metalora.learner.readouts.prototype import Prototype

READOUTS: dict[str, type[Readout]] = {
    readout.name: readout
    for readout in (KernelRidge, DiscriminantAnalysis, LogisticRegression, Prototype, SoftNeighbours)
}


def make_readout(name: str, *, balanced: bool = False) -> Readout:
    """Return a new readout.

    Args:
        name: Name of the readout: "kernel-ridge" (the default of a learner), "lda", "logistic", "prototype" or "knn".
        balanced: Whether the logits leave out how often classes occur in the support set.

    Raises:
        ValueError: There is no readout of this name.

    Example:
        >>> make_readout("kernel-ridge").name
        'kernel-ridge'
        >>> make_readout("ldaa")
        Traceback (most recent call last):
        ValueError: unknown readout 'ldaa'; did you mean 'lda'? (known: kernel-ridge, knn, lda, logistic, prototype)
    """
    check_choice("readout", name, sorted(READOUTS))
    return READOUTS[name](balanced=balanced)
