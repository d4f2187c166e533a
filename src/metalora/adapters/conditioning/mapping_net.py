"""From features to generated factors: the mapping net, and what standardises its input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.features import between_class_share
from metalora.config import ConditionConfig


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A Linear without initial values: drawing them would move every later number of the global generator."""
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs))  # type: ignore[no-untyped-call]


class MappingNet(nn.Module):
    """MLP from d features to every generated number: Linear, GELU, then a head per target or one shared head.

    shared: g_t = H (trunk(z) * e_t), with an embedding e_t of `hidden` numbers per generated factor t.
    silent: factors that must start at their c0 exactly, so that Delta W starts at zero: their head starts at zero.
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
        self.shared = heads == "shared"
        generator = torch.Generator().manual_seed(seed)
        out = max(self.numels) if self.shared else sum(self.numels)
        self.trunk = _linear(feature_size, hidden)
        self.head = _linear(hidden, out)
        self.embedding = nn.Parameter(torch.empty(len(self.numels), hidden)) if self.shared else None
        with torch.no_grad():
            self.trunk.weight.normal_(0, feature_size**-0.5, generator=generator)
            self.head.weight.normal_(0, 0.1 * hidden**-0.5, generator=generator)  # c starts close to c0
            self.trunk.bias.zero_(), self.head.bias.zero_()
            if self.embedding is not None:
                self.embedding.normal_(0, 1, generator=generator)
            if not self.shared:
                for key, rows in zip(shapes, torch.split(self.head.weight, self.numels), strict=True):
                    rows.mul_(key not in silent)
            if self.shared and silent:
                self.head.weight.zero_()

    def forward(self, z: Tensor) -> list[Tensor]:
        """(n, d) -> one (n, numel) per generated factor."""
        h = torch.nn.functional.gelu(self.trunk(z))
        if not self.shared:
            return list(self.head(h).split(self.numels, dim=1))
        assert self.embedding is not None
        g = self.head(h[:, None] * self.embedding)  # (n, factor, numel)
        return [g[:, k, :numel] for k, numel in enumerate(self.numels)]

    def num_params(self, feature_size: int) -> int:
        """Closed form of the trainable numbers."""
        hidden, out = self.trunk.out_features, self.head.out_features
        embedding = len(self.numels) * hidden if self.shared else 0
        return hidden * (feature_size + 1) + out * (hidden + 1) + embedding


class Conditioner(nn.Module):
    """Features -> condition: standardise, clamp, map, bound, and add to the factors' own values c0."""

    def __init__(
        self,
        config: ConditionConfig,
        feature_size: int,
        shapes: Mapping[str, Sequence[int]],
        seed: int,
        silent: Collection[str] = (),
    ):
        super().__init__()
        self.config, self.shapes, self.feature_size = config, dict(shapes), feature_size
        self.mapping_net = MappingNet(feature_size, config.hidden, shapes, config.heads, seed, silent)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(feature_size))
        self.register_buffer("std", torch.ones(feature_size))

    def calibrate(self, features: Tensor) -> None:
        """Freeze the features' mean and standard deviation, from training data: (n, d), n >= 2."""
        _check(features, self.feature_size)
        if len(features) < 2:
            raise ValueError(f"calibration needs at least 2 examples, got {len(features)}")
        self.mean.copy_(features.mean(0))
        self.std.copy_(features.std(0).clamp_min(1e-3))

    def pool(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """The network's input, (n, d) for scope=sample and (1, d) for a support set."""
        _check(features, self.feature_size)
        standard = (features - self.mean) / self.std
        if self.config.scope == "support" and self.config.labelled:
            if labels is None:
                raise ValueError("this adapter's condition is label-aware (condition.labelled): pass labels")
            if len(labels) != len(features):
                raise ValueError(f"the support set has {len(features)} examples and {len(labels)} labels")
            if len(torch.unique(labels)) < 2:
                raise ValueError("the support set has one class only; a label-aware condition needs at least two")
            # the shift and scale bring a share in [0, 1] to order one
            standard = (between_class_share(features, labels)[None] - 0.3) / 0.25
        elif self.config.scope == "support":
            standard = standard.mean(0, keepdim=True)
        return standard.clamp(-self.config.clamp, self.config.clamp)

    def forward(self, features: Tensor, labels: Tensor | None, centre: Mapping[str, Tensor]) -> Condition:
        """c = c0 + b tanh(g(z) / b) for every generated factor; `centre` holds the c0."""
        config = self.config
        z = self.pool(features, labels)
        if self.training and config.descriptor_dropout:
            z = z * (torch.rand_like(z) >= config.descriptor_dropout)
        offsets = self.mapping_net(z.to(self.mapping_net.trunk.weight.dtype))
        if config.bound:
            offsets = [config.bound * torch.tanh(g / config.bound) for g in offsets]
        if self.training and config.dropout:
            keep = (torch.rand(len(z), 1, device=z.device) >= config.dropout).to(z.dtype)
            offsets = [g * keep for g in offsets]
        values = {
            key: centre[key][None] + g.reshape(-1, *self.shapes[key])
            for key, g in zip(self.shapes, offsets, strict=True)
        }
        penalty = torch.stack([g.square().mean() for g in offsets]).mean()
        return Condition(values, z, penalty)

    def neutral(self, centre: Mapping[str, Tensor]) -> Condition:
        """The c0 themselves, as one condition for all."""
        features = torch.zeros_like(self.mean)[None]
        return Condition({key: value[None] for key, value in centre.items()}, features, features.sum())


def _check(features: Tensor, size: int) -> None:
    if features.ndim != 2 or features.shape[1] != size:
        raise ValueError(f"condition features have shape {tuple(features.shape)}, expected (n, {size})")
    if not torch.compiler.is_compiling() and not torch.isfinite(features).all():
        bad = (~torch.isfinite(features)).any(1).nonzero().flatten().tolist()
        raise ValueError(f"condition features are not finite (NaN or infinite) in examples {bad[:8]}")
