"""A condition: generated factors for n examples, with the features that they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from metalora._util.files import write_atomically

Values = Mapping[str, Tensor]  # key of a stored factor -> one value an example, (n, *shape)


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

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
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
