"""How a fitted readout turns weighted features into logits: plain data that a file stores.

Shapes: n items of the support set (or fewer representatives), m queries, d features. All features are weighted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from metalora.learner.readouts.kernel import FeatureKernel, linear_and_rbf, squared_distances
from metalora.learner.readouts.projection import Projection


@dataclass(frozen=True)
class Rule(ABC):
    """A map from weighted features to logits. The fields that are tensors are stored as tensors."""

    name: ClassVar[str]

    @abstractmethod
    def logits(self, features: Tensor, support: Tensor) -> Tensor:
        """Return logits, (m, count), of queries (m, d), next to the items (n, d) of the support set."""

    @abstractmethod
    def divided(self, temperature: float) -> Self:
        """Return the rule whose logits are divided by a temperature."""

    @abstractmethod
    def directions(self, support: Tensor) -> Tensor:
        """Return the directions (d, k) in which the logits change most with the features."""

    def only(self, columns: Tensor) -> Self:
        """Return the rule for the features at `columns`, (d',); the default needs no change."""
        return self

    def projected(self, projection: Projection) -> Self:
        """Return the rule for features after a projection; the default needs no change."""
        return self

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
        return self.logits_of_kernel(linear_and_rbf(features, support), features, support)

    def logits_of_kernel(self, of_all: Tensor, features: Tensor, support: Tensor) -> Tensor:
        """Return logits, (m, count), if the kernel of all columns is computed already, (m, n)."""
        kernel = FeatureKernel(self.frozen_width, self.frozen_scale).completed(of_all, features, support)
        return kernel @ self.coefficients + self.offset

    def divided(self, temperature: float) -> KernelRule:
        """Return the rule whose logits are divided by a temperature."""
        return replace(self, coefficients=self.coefficients / temperature, offset=self.offset / temperature)

    def directions(self, support: Tensor) -> Tensor:
        """Return the gradients of the linear part and, at the mean, of the other part, (d, 2 * count)."""
        near_mean = torch.exp(-support.square().sum(1, keepdim=True) / 4) * self.coefficients
        return support.mT @ torch.cat([self.coefficients, near_mean], 1)


@dataclass(frozen=True)
class LinearRule(Rule):
    """logits = features @ slope + offset.

    Attributes:
        slope: Slopes, (d, count).
        offset: Offsets, (count,).
    """

    name: ClassVar[str] = "linear"
    slope: Tensor
    offset: Tensor

    def logits(self, features: Tensor, support: Tensor) -> Tensor:
        """Return logits, (m, count)."""
        return features @ self.slope + self.offset

    def divided(self, temperature: float) -> LinearRule:
        """Return the rule whose logits are divided by a temperature."""
        return LinearRule(self.slope / temperature, self.offset / temperature)

    def directions(self, support: Tensor) -> Tensor:
        """Return the slopes, (d, count)."""
        return self.slope

    def only(self, columns: Tensor) -> LinearRule:
        """Return the rule with the slopes of some features."""
        return replace(self, slope=self.slope[columns])

    def projected(self, projection: Projection) -> LinearRule:
        """Return the rule with projected slopes."""
        return replace(self, slope=projection.of_directions(self.slope))


@dataclass(frozen=True)
class PrototypeRule(Rule):
    """logits = scale * cos(features, prototypes) + offset, or -scale * squared distance + offset.

    Attributes:
        prototypes: A point for each class, (classes, d).
        scale: The scale, a scalar.
        offset: Offsets, (classes,).
        distance: "cosine" or "euclidean".
    """

    name: ClassVar[str] = "prototype"
    prototypes: Tensor
    scale: Tensor
    offset: Tensor
    distance: str = "cosine"

    def logits(self, features: Tensor, support: Tensor) -> Tensor:
        """Return logits, (m, classes)."""
        if self.distance == "cosine":
            return self.scale * cosines(features, self.prototypes) + self.offset
        return -self.scale * squared_distances(features, self.prototypes) + self.offset

    def divided(self, temperature: float) -> PrototypeRule:
        """Return the rule whose logits are divided by a temperature."""
        return replace(self, scale=self.scale / temperature, offset=self.offset / temperature)

    def directions(self, support: Tensor) -> Tensor:
        """Return the prototypes as columns, (d, classes)."""
        return self.prototypes.mT

    def only(self, columns: Tensor) -> PrototypeRule:
        """Return the rule with some features of the prototypes."""
        return replace(self, prototypes=self.prototypes[:, columns])

    def projected(self, projection: Projection) -> PrototypeRule:
        """Return the rule with projected prototypes."""
        return replace(self, prototypes=projection.of_items(self.prototypes))


@dataclass(frozen=True)
class NeighbourRule(Rule):
    """A vote of all items of the support set with weights that fall with the angle.

    logit_c = (log(sum_{i in c} exp(scale * cos(features, i)) + exp(-scale)) + prior_c) / temperature. The last term in
    the sum, an item at the opposite side, keeps a class without items finite.

    Attributes:
        membership: Classes of the items, one-hot, (n, classes).
        scale: The scale, a scalar.
        prior: Added to the logits, (classes,).
        temperature: The temperature, a scalar.
    """

    name: ClassVar[str] = "neighbours"
    membership: Tensor
    scale: Tensor
    prior: Tensor
    temperature: Tensor

    def logits(self, features: Tensor, support: Tensor) -> Tensor:
        """Return logits, (m, classes)."""
        return self.vote(self.scale * cosines(features, support))

    def vote(self, similarities: Tensor) -> Tensor:
        """Return logits, (m, classes), of scaled similarities (m, n) of queries and items; -inf: an item left out."""
        of_classes = similarities[:, :, None].masked_fill(self.membership[None] == 0, -torch.inf)  # (m, n, classes)
        opposite = (-self.scale).expand(len(similarities), 1, self.membership.shape[1])
        votes = torch.cat([of_classes, opposite], 1).logsumexp(1)
        return (votes + self.prior) / self.temperature

    def divided(self, temperature: float) -> NeighbourRule:
        """Return the rule whose logits are divided by a temperature."""
        return replace(self, temperature=self.temperature * temperature)

    def directions(self, support: Tensor) -> Tensor:
        """Return the class sums of the items, (d, classes)."""
        return support.mT @ self.membership


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """Return the cosine of each pair of rows, (m, n); 0 with a row of zeros.

    Args:
        left: Features, (m, d).
        right: Features, (n, d).

    Example:
        >>> cosines(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        tensor([[0.7071, 0.0000]])
    """
    return normalize(left, dim=1) @ normalize(right, dim=1).mT
