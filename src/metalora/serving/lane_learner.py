"""A learner as the adapting lane uses it: prepared inputs, in small pieces, each of which lets others go first."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor

from metalora.learner.backbone import Backbone
from metalora.learner.data import Preprocessor
from metalora.learner.learner import MetaLearner

PIECE = 16  # inputs of one forward pass; larger ones delay the predictions that come in between


class PreparedItems:
    """A preprocessor of items that are prepared already; it waits before it makes a batch.

    Args:
        preprocessor: The one that has prepared the items.
        wait: Called before each batch.
    """

    def __init__(self, preprocessor: Preprocessor, wait: Callable[[], object]):
        self.kind = preprocessor.kind
        self._preprocessor, self._wait = preprocessor, wait
        self.to_dict = preprocessor.to_dict
        self.collate = preprocessor.collate

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> Any:
        """Return the inputs of the network for items that `encode` of the other preprocessor has returned."""
        self._wait()
        return self._preprocessor.collate(items)

    def encode(self, items: Sequence[Any], names: Sequence[str] | None = None) -> list[Tensor]:
        """Return the items as they are."""
        return list(items)


class PreparedBackbone(Backbone):
    """A backbone whose inputs are prepared and so were checked before."""

    def check_inputs(self, items: Sequence[Any]) -> None:
        """Accept all items."""


def lane_learner(learner: MetaLearner, wait: Callable[[], object]) -> MetaLearner:
    """Return a learner with the network, the adapter and the readout of another one, for prepared items.

    Args:
        learner: The learner.
        wait: Called before every forward pass of a piece.
    """
    lane = copy.copy(learner)
    backbone = learner.backbone
    prepared = cast(Preprocessor, PreparedItems(backbone.preprocessor, wait))
    lane.backbone = PreparedBackbone(backbone.model, prepared, backbone.name)
    lane.config = dataclasses.replace(learner.config, batch_size=min(PIECE, learner.config.batch_size))
    return lane
