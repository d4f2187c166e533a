"""How a fitted readout turns weighted features into logits: plain data that a file stores.

Shapes: n items of the support set (or fewer representatives), m queries, d features. All features are weighted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from metalora.learner.readouts.kernel import FeatureKernel


@dataclass(frozen=True)
class Rule(ABC):
    """A map from weighted features to logits. The fields that are tensors are stored as tensors."""

    name: ClassVar[str]

    @abstractmethod
    def logits(self, features: Tensor, support: Tensor) -> Tensor:
        """Return logits, (m, count), of queries (m, d), next to the items (n, d) of the support set."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def settings(self) -> dict[str, Any]:
        """Return the fields that are no tensors, by name, as JSON can store them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if not isinstance(value, Tensor)}

    def to(self, reference: Tensor) -> Self:
        """Return the rule with its tensors in the dtype and on the device of another tensor."""
        return replace(self, **{name: tensor.to(reference) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class KernelRule(Rule):
    """logits = k(features, support) @ coefficients + offset.

    Attributes:
        coefficients: Dual coefficients, (n, count).
        offset: Offsets, (count,).
        frozen_width: See `FeatureKernel`.
        frozen_scale: See `FeatureKernel`.
    """

    name: ClassVar[str] = "kernel"
    coefficients: Tensor
    offset: Tensor
    frozen_width: int = 0
    frozen_scale: float = 1.0

    def logits(self, features: Tensor, support: Tensor) -> Tensor:
        """Return logits, (m, count)."""
        kernel = FeatureKernel(self.frozen_width, self.frozen_scale)
        return kernel(features, support) @ self.coefficients + self.offset
