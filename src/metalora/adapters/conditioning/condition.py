"""From features to generated factors: the condition, and the mapping net that makes it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from metalora._util.files import write_atomically
from metalora.adapters.conditioning.features import CACHES, between_class_share
from metalora.config import ConditionConfig

Values = Mapping[str, Tensor]  # factor key -> one value an example, (n, *shape)


def merge_values(*many: Values) -> dict[str, Tensor]:
    """Values side by side; those of one example serve as many as the others have."""
    merged = {key: value for values in many for key, value in values.items()}
    n = max(len(value) for value in merged.values())
    return {key: v if len(v) == n else v.expand(n, *v.shape[1:]) for key, v in merged.items()}


def task_index(ids: Tensor | Sequence[int] | int, tasks: int, device: torch.device) -> Tensor:
    """Task ids as (n,) integers; ValueError for what is no whole number in 0 .. tasks - 1."""
    index = torch.as_tensor(ids, device=device).reshape(-1)
    if not torch.compiler.is_compiling() and len(index):
        wrong = index[(index < 0) | (index >= tasks)]
        if index.is_floating_point() or index.dtype == torch.bool or len(wrong):
            raise ValueError(f"task {(wrong if len(wrong) else index)[0]}: expected 0..{tasks - 1}")
    return index


@dataclass(frozen=True)
class Condition:
    """Generated factors for n examples (n = 1: one condition for all), and the features they were made from.

    values    factor key -> (n, *factor shape)
    features  (n, d)
    penalty   mean square of c - c0, to be added to a loss
    """

    values: dict[str, Tensor]
    features: Tensor
    penalty: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int | slice | Tensor) -> Condition:
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"condition {index} of {len(self)}")
        pick = slice(index, index + 1 or None) if isinstance(index, int) else index
        return self._map(lambda t: t[pick])

    def _map(self, change) -> Condition:
        return replace(self, values={k: change(v) for k, v in self.values.items()}, features=change(self.features))

    def mean(self) -> Condition:
        """One condition: the mean over the n examples."""
        return self._map(lambda t: t.mean(0, keepdim=True))

    def detach(self) -> Condition:
        """The same numbers, cut off from the graph (to be cached)."""
        return replace(self._map(Tensor.detach), penalty=self.penalty.detach())

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return replace(self._map(lambda t: t.to(device)), penalty=self.penalty.to(device))

    def vector(self) -> Tensor:
        """All generated numbers side by side, (n, total)."""
        return torch.cat([value.flatten(1) for value in self.values.values()], 1)

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Conditions one after another: n is the sum of their lengths."""
        first = conditions[0]
        values = {key: torch.cat([c.values[key] for c in conditions]) for key in first.values}
        features = torch.cat([c.features for c in conditions])
        return Condition(values, features, torch.stack([c.penalty for c in conditions]).mean())

    def save(self, path: str | Path) -> None:
        """Write the condition as one safetensors file, atomically."""
        from safetensors.torch import save

        tensors = {f"values/{k}": v.detach().contiguous() for k, v in self.values.items()}
        tensors |= {"features": self.features.detach().contiguous(), "penalty": self.penalty.detach()}
        write_atomically(path, save(tensors, {"metalora": json.dumps({"kind": "condition", "version": 1})}))

    @staticmethod
    def load(path: str | Path) -> Condition:
        """Read what `save` wrote; ValueError names a file that is not a condition."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(Path(path).read_bytes())
            values = {k.removeprefix("values/"): v for k, v in tensors.items() if k.startswith("values/")}
            return Condition(values, tensors["features"], tensors["penalty"])
        except FileNotFoundError:
            raise ValueError(f"{path}: no such condition file") from None
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: not a condition file ({error})") from None


class ConditionCache:
    """The values that were active at a prompt, for the steps that continue it, by the key-value cache of both."""

    def __init__(self) -> None:
        self.kept: WeakKeyDictionary[Any, Values] = WeakKeyDictionary()
        self.ahead: Values | None = None  # known, but not before the stem has run

    def __reduce__(self) -> tuple:
        return ConditionCache, ()  # a copy has no caches of its own yet

    def keep(self, output: Any, values: Values | None) -> None:
        """Keep the values of a forward for as long as the cache that it gives; nothing under torch.compile."""
        cache = _cache({name: getattr(output, name, None) for name in CACHES})
        if values and cache is not None and not torch.compiler.is_compiling():
            self.kept[cache] = values

    def values(self, inputs: Mapping[str, Any], needed: bool) -> Values | None:
        """The values of the sequences that a forward with these inputs continues; None if it continues none.

        ValueError: they are needed, and the cache is none that was kept.
        """
        length = _positions(inputs)
        known = self.kept.get(_cache(inputs)) if length else None
        if length and needed and known is None:
            raise ValueError(
                f"the cache holds {length} positions whose condition is not known (a copy, or made under "
                "torch.compile): call model(..., condition=condition)"
            )
        return known


def _cache(inputs: Mapping[str, Any]) -> Any:
    return next((inputs[name] for name in CACHES if inputs.get(name) is not None), None)


def _positions(inputs: Mapping[str, Any]) -> int:
    """How many positions the cache among the inputs holds; of a state without positions 1 once it is set."""
    cache = _cache(inputs)
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:  # of state-space models
        return int(cache.has_previous_state())


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
        # skip_init: nn.Linear would draw from the global generator, and so move every later random number
        self.trunk = nn.utils.skip_init(nn.Linear, feature_size, hidden)
        self.head = nn.utils.skip_init(nn.Linear, hidden, out)
        self.embedding = nn.Parameter(torch.empty(len(self.numels), hidden)) if self.shared else None
        with torch.no_grad():
            self.trunk.weight.normal_(0, feature_size**-0.5, generator=generator)
            self.head.weight.normal_(0, 0.1 * hidden**-0.5, generator=generator)  # c starts close to c0
            self.trunk.bias.zero_(), self.head.bias.zero_()
            if self.shared:
                self.embedding.normal_(0, 1, generator=generator)
            for key, rows in zip(shapes, self.head.weight.split(self.numels) if not self.shared else (), strict=False):
                rows.mul_(key not in silent)
            if self.shared and silent:
                self.head.weight.zero_()

    def forward(self, z: Tensor) -> list[Tensor]:
        """(n, d) -> one (n, numel) per generated factor."""
        h = torch.nn.functional.gelu(self.trunk(z))
        if not self.shared:
            return list(self.head(h).split(self.numels, dim=1))
        g = self.head(h[:, None] * self.embedding)  # (n, factor, numel)
        return [g[:, k, :numel] for k, numel in enumerate(self.numels)]

    def num_params(self, feature_size: int) -> int:
        """Closed form of the trainable numbers."""
        hidden, out = self.trunk.out_features, self.head.out_features
        return hidden * (feature_size + 1) + out * (hidden + 1) + (len(self.numels) * hidden if self.shared else 0)


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
            if len(labels.unique()) < 2:
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
