"""The readouts by name."""

from __future__ import annotations

from inspect import signature
from typing import Any, cast

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


def make_readout(name: str, **settings: bool | int | str) -> Readout:
    """Return a new readout.

    Args:
        name: Name of the readout: "kernel-ridge" (the default of a learner), "lda", "logistic", "prototype" or "knn".
        **settings: Settings of its class, such as `balanced=True`, `folds=10` (kernel-ridge) or
            `distance="euclidean"` (prototype).

    Raises:
        ValueError: There is no readout of this name, or it has no such setting.

    Example:
        >>> make_readout("kernel-ridge", balanced=True).name
        'kernel-ridge'
        >>> make_readout("ldaa")
        Traceback (most recent call last):
        ValueError: unknown readout 'ldaa'; did you mean 'lda'? (known: kernel-ridge, knn, lda, logistic, prototype)
    """
    check_choice("readout", name, sorted(READOUTS))
    readout = READOUTS[name]
    for setting in settings:
        check_choice(f"setting of readout {name!r}", setting, sorted(signature(readout).parameters))
    return cast(Readout, cast(Any, readout)(**settings))
