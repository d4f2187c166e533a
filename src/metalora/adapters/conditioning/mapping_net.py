"""From features to generated factors: the mapping net, and what standardises its input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.features import between_class_share
from metalora.adapters.readable import is_readable
from metalora.config import ConditionConfig


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a Linear without initial values: drawing them would change all later numbers of the global generator."""
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs))  # type: ignore[no-untyped-call]


class MappingNet(nn.Module):
    """MLP from d features to all generated numbers: Linear, GELU, then a head for each factor or one shared head.

    The shared head is g_t = H (gelu(trunk(z)) * e_t), with an embedding e_t of `hidden` numbers for each generated
    factor t.

    Args:
        feature_size: Number of features d.
        hidden: Width of the hidden layer.
        shapes: Key of a generated factor -> its shape.
        heads: "target" for a head for each factor, "shared" for one shared head.
        seed: Seed of the initial values.
        silent: Keys of the factors that must start exactly at their c0, so that Delta W starts at zero: their head
            starts at zero (a shared head as a whole).

    Attributes:
        numels: Number of elements of each generated factor.
        equal: Whether all generated factors have equally many elements.
        shared: Whether the head is shared.

    Example:
        >>> mapping_net = MappingNet(5, 8, {"A": (2, 2), "B": (3,)}, "target", seed=0)
        >>> numbers = mapping_net(torch.rand(6, 5))
        >>> numbers.shape, [tuple(part.shape) for part in mapping_net.split(numbers)]
        (torch.Size([6, 7]), [(6, 4), (6, 3)])
        >>> mapping_net.num_params(5) == sum(parameter.numel() for parameter in mapping_net.parameters())
        True
    """

    def __init__(
        self,
        feature_size: int,
        hidden: int,
        shapes: Mapping[str, Sequence[int]],
        heads: str,
        seed: int,
        silent: Collection[str] = (),
    ):
        super().__init__()
        self.numels = [prod(shape) for shape in shapes.values()]
        self.equal = len({*self.numels}) == 1
        self.shared = heads == "shared"
        generator = torch.Generator().manual_seed(seed)
        output_size = max(self.numels) if self.shared else sum(self.numels)
        self.trunk = _linear(feature_size, hidden)
        self.head = _linear(hidden, output_size)
        self.embedding = nn.Parameter(torch.empty(len(self.numels), hidden)) if self.shared else None
        with torch.no_grad():
            self.trunk.weight.normal_(0, feature_size**-0.5, generator=generator)
            self.head.weight.normal_(0, 0.1 * hidden**-0.5, generator=generator)  # c starts close to c0
            self.trunk.bias.zero_()
            self.head.bias.zero_()
            if self.embedding is not None:
                self.embedding.normal_(0, 1, generator=generator)
            if not self.shared:
                # Zeroed after the drawing, so that a silent head does not change the numbers of the others.
                for key, head_rows in zip(shapes, torch.split(self.head.weight, self.numels), strict=True):
                    head_rows.mul_(key not in silent)
            if self.shared and silent:
                self.head.weight.zero_()

    def forward(self, z: Tensor) -> Tensor:
        """Return the numbers of all generated factors together, before they are bounded and added to c0.

        Args:
            z: Standardised features, (n, d).

        Returns:
            A tensor (n, sum of the numels), or (n, factors, largest numel) of a shared head; `split` takes it apart.
        """
        hidden = torch.nn.functional.gelu(self.trunk(z))  # (n, hidden)
        numbers: Tensor = self.head(hidden if self.embedding is None else hidden[:, None] * self.embedding)
        return numbers

    def split(self, numbers: Tensor) -> list[Tensor]:
        """Return a tensor (n, numel) for each generated factor, in the order of the shapes.

        Args:
            numbers: What `forward` has returned, changed number by number or not.
        """
        if not self.shared:
            return list(torch.split(numbers, self.numels, dim=1))
        if self.equal:
            return list(numbers.unbind(1))
        return [numbers[:, place, :numel] for place, numel in enumerate(self.numels)]

    def join(self, factors: Sequence[Tensor]) -> Tensor:
        """Return one value of each generated factor as `forward` lays its numbers out, without the axis of examples.

        Args:
            factors: The values, each of the shape of its factor.

        Returns:
            A tensor (sum of the numels), or (factors, largest numel) of a shared head, filled up with zeros.
        """
        vectors = [factor.flatten() for factor in factors]
        if not self.shared:
            return torch.cat(vectors)
        if not self.equal:
            largest = max(self.numels)
            vectors = [torch.nn.functional.pad(vector, (0, largest - len(vector))) for vector in vectors]
        return torch.stack(vectors)

    def mean_square(self, numbers: Tensor) -> Tensor:
        """Return the mean square of the numbers of a factor, averaged over the factors, a scalar.

        Args:
            numbers: What `forward` has returned, changed number by number or not.
        """
        if self.equal:
            return numbers.square().mean()
        return torch.stack([factor.square().mean() for factor in self.split(numbers)]).mean()

    def num_params(self, feature_size: int) -> int:
        """Return the number of trainable parameters, in closed form.

        Args:
            feature_size: Number of features d.
        """
        hidden, output_size = self.trunk.out_features, self.head.out_features
        embedding = len(self.numels) * hidden if self.shared else 0
        return hidden * (feature_size + 1) + output_size * (hidden + 1) + embedding


class Conditioner(nn.Module):
    """Makes a condition from features: standardise, clamp, map, bound, and add to the learned values c0 of the factors.

    Args:
        config: How the condition is made.
        feature_size: Number of features d.
        shapes: Key of a generated factor -> its shape.
        seed: Seed of the initial values of the mapping net.
        silent: Keys of the factors that must start exactly at their c0.

    Attributes:
        mapping_net: The trainable part.
        mean: Mean that the features are standardised by, (d,).
        std: Standard deviation that the features are standardised by, (d,).

    Example:
        >>> from metalora import ConditionConfig
        >>> conditioner = Conditioner(ConditionConfig(source="tensor"), 5, {"C": (2, 2)}, seed=0)
        >>> conditioner.calibrate(torch.rand(10, 5))
        >>> condition = conditioner(torch.rand(3, 5), None, {"C": torch.eye(2)})
        >>> condition.values["C"].shape
        torch.Size([3, 2, 2])
        >>> len(conditioner.neutral({"C": torch.eye(2)}))
        1
    """

    def __init__(
        self,
        config: ConditionConfig,
        feature_size: int,
        shapes: Mapping[str, Sequence[int]],
        seed: int,
        silent: Collection[str] = (),
    ):
        super().__init__()
        self.config = config
        self.shapes = dict(shapes)
        self.feature_size = feature_size
        self.mapping_net = MappingNet(feature_size, config.hidden, shapes, config.heads, seed, silent)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("std", torch.ones(feature_size))

    def calibrate(self, features: Tensor) -> None:
        """Set the mean and the standard deviation that features are standardised by.

        Args:
            features: Features of training data, (n, d), n at least 2.

        Raises:
            ValueError: The features have another shape, are not finite, are of fewer than 2 examples, or are the same
                for all of them, as those of images that are too small for a network may be.
        """
        _check(features, self.feature_size)
        if len(features) < 2:
            raise ValueError(f"calibration needs at least 2 examples, got {len(features)}")
        if (features == features[0]).all():
            raise ValueError(
                f"the features of the condition are the same for all {len(features)} examples, so that no condition "
                "can depend on them; are the images too small for the network?"
            )
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(1e-3))  # a feature that hardly varies would be blown up otherwise

    def pool(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """Return the input of the mapping net: the standardised and clamped features.

        Args:
            features: Features, (n, d).
            labels: Classes of the examples, (n,); needed for a support set if the condition is label-aware.

        Returns:
            A tensor (n, d) for scope "sample" and (1, d) for a support set.

        Raises:
            ValueError: The features have another shape or are not finite; labels are missing, do not have the length
                n, or are all the same.
        """
        _check(features, self.feature_size)
        standard = (features - self.mean) / self.std  # (n, d)
        if self.config.scope == "support" and self.config.labelled:
            if labels is None:
                raise ValueError("this adapter's condition is label-aware (condition.labelled): pass labels")
            if len(labels) != len(features):
                raise ValueError(f"the support set has {len(features)} examples and {len(labels)} labels")
            if len(torch.unique(labels)) < 2:
                raise ValueError("the support set has one class only; a label-aware condition needs at least two")
            # this shift and this scale bring a share, which is in [0, 1], to the order of one
            standard = (between_class_share(features, labels)[None] - 0.3) / 0.25
        elif self.config.scope == "support":
            standard = standard.mean(0, keepdim=True)  # (1, d)
        return standard.clamp(-self.config.clamp, self.config.clamp)

    def forward(self, features: Tensor, labels: Tensor | None, centre: Mapping[str, Tensor]) -> Condition:
        """Return c = c0 + b tanh(g(z) / b) for every generated factor.

        Args:
            features: Features, (n, d).
            labels: Classes of the examples, (n,); needed for a support set if the condition is label-aware.
            centre: Key of a generated factor -> its c0, of the shape of the factor.

        Returns:
            The condition: for n examples, or one (n = 1) for a support set.

        Raises:
            ValueError: What `pool` raises.
        """
        config = self.config
        z = self.pool(features, labels)
        if self.training and config.descriptor_dropout:
            z = z * (torch.rand_like(z) >= config.descriptor_dropout)
        numbers = self.mapping_net(z.to(self.mapping_net.trunk.weight.dtype))
        if config.bound:  # near the identity for small offsets, and never above the bound
            numbers = config.bound * torch.tanh(numbers / config.bound)  # of all factors at once
        if self.training and config.dropout:
            # A dropped example gets c0, the neutral condition. Nothing is scaled up for the others.
            keep = torch.rand(len(z), 1, device=z.device) >= config.dropout  # (n, 1)
            numbers = numbers * keep.to(z.dtype).view(-1, *[1] * (numbers.ndim - 1))
        # For all factors together: an operation for each factor would take longer than its arithmetic.
        generated = numbers + self.mapping_net.join([centre[key] for key in self.shapes])
        parts = zip(self.shapes.items(), self.mapping_net.split(generated), strict=True)
        values = {key: part if len(shape) == 1 else part.reshape(len(part), *shape) for (key, shape), part in parts}
        return Condition(values, z, self.mapping_net.mean_square(numbers))

    def neutral(self, centre: Mapping[str, Tensor]) -> Condition:
        """Return the c0 themselves, as one condition (n = 1) for all examples.

        Args:
            centre: Key of a generated factor -> its c0, of the shape of the factor.
        """
        features = torch.zeros_like(self.mean)[None]
        return Condition({key: value[None] for key, value in centre.items()}, features, features.sum())


def _check(features: Tensor, size: int) -> None:
    """Raise a ValueError for features that are not finite or not of shape (n, size)."""
    if features.ndim != 2 or features.shape[1] != size:
        raise ValueError(f"condition features have shape {tuple(features.shape)}, expected (n, {size})")
    # The sum is finite only if all numbers are, and takes one operation; a sum that is too large for its type says
    # nothing, so that the numbers decide.
    if not is_readable(features) or torch.isfinite(features.sum()):
        return
    wrong_examples = (~torch.isfinite(features)).any(1).nonzero().flatten().tolist()
    if wrong_examples:
        raise ValueError(f"condition features are not finite (NaN or infinite) in examples {wrong_examples[:8]}")
