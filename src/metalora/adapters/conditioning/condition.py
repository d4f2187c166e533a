"""A condition: generated factors for n examples, with the features that they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from metalora._util.files import write_atomically

Values = Mapping[str, Tensor]  # key of a stored factor -> its value for each example, (n, *factor shape)


def merge_values(*many: Values) -> dict[str, Tensor]:
    """Return values of different factors in one dictionary; values for one example are repeated for all n examples.

    Args:
        many: Values, key of a stored factor -> (n, *factor shape) or (1, *factor shape). A later value replaces an
            earlier one of the same key.

    Returns:
        Key of a stored factor -> (n, *factor shape), with the same n for all.

    Example:
        >>> merged = merge_values({"A": torch.zeros(1, 2)}, {"B": torch.zeros(3, 4)})
        >>> {key: tuple(value.shape) for key, value in merged.items()}
        {'A': (3, 2), 'B': (3, 4)}
    """
    merged = {key: value for values in many for key, value in values.items()}
    n = max(len(value) for value in merged.values())
    return {key: value if len(value) == n else value.expand(n, *value.shape[1:]) for key, value in merged.items()}


def task_index(ids: Tensor | Sequence[int] | int, tasks: int, device: torch.device) -> Tensor:
    """Return task ids as a tensor of integers. Under torch.compile the ids are not checked.

    Args:
        ids: One task id, or one for each example.
        tasks: Number of tasks.
        device: Where the tensor is put.

    Returns:
        The task ids, (n,).

    Raises:
        ValueError: An id is not an integer from 0 to tasks - 1.

    Example:
        >>> task_index([0, 2], 3, torch.device("cpu"))
        tensor([0, 2])
    """
    index = torch.as_tensor(ids, device=device).reshape(-1)  # a single number becomes (1,)
    if not torch.compiler.is_compiling() and len(index):
        wrong = index[(index < 0) | (index >= tasks)]
        # Booleans and fractions compare like numbers, but they are not task ids.
        if index.is_floating_point() or index.dtype == torch.bool or len(wrong):
            raise ValueError(f"task {(wrong if len(wrong) else index)[0]}: expected 0..{tasks - 1}")
    return index


@dataclass(frozen=True)
class Condition:
    """Generated factors for n examples (n = 1: one condition for all), and the features that they were made from.

    Attributes:
        values: Key of a stored factor -> its values, (n, *factor shape).
        features: The features, (n, d), as the mapping net reads them.
        penalty: Mean square of c - c0, a scalar that may be added to a loss.

    Example:
        >>> condition = Condition({"C": torch.ones(3, 2, 2)}, torch.zeros(3, 5), torch.tensor(0.0))
        >>> len(condition), len(condition[1]), len(condition.mean()), condition.vector().shape
        (3, 1, 1, torch.Size([3, 4]))
        >>> len(Condition.stack([condition, condition]))
        6
        >>> condition.save("condition.safetensors")
        >>> torch.equal(Condition.load("condition.safetensors").values["C"], condition.values["C"])
        True
    """

    values: dict[str, Tensor]
    features: Tensor
    penalty: Tensor

    def __len__(self) -> int:
        """Return the number of examples n."""
        return len(self.features)

    def __getitem__(self, index: int | slice | Tensor) -> Condition:
        """Return the condition of some of the examples; the penalty stays that of all.

        Args:
            index: Number of an example (the result has n = 1), a slice, or a tensor of numbers or booleans.

        Raises:
            IndexError: The number is not that of an example.
        """
        if isinstance(index, int) and not -len(self) <= index < len(self):
            raise IndexError(f"condition {index} does not exist: there are {len(self)}")
        examples = slice(index, index + 1 or None) if isinstance(index, int) else index  # -1 is the slice -1:None
        return self._map(lambda tensor: tensor[examples])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """Return a condition with every value and the features changed by a function."""
        values = {key: change(value) for key, value in self.values.items()}
        return replace(self, values=values, features=change(self.features))

    def mean(self) -> Condition:
        """Return one condition, n = 1: the mean over the n examples."""
        return self._map(lambda tensor: tensor.mean(0, keepdim=True))

    def detach(self) -> Condition:
        """Return the same numbers without their autograd graph, so that they can be stored."""
        return replace(self._map(Tensor.detach), penalty=self.penalty.detach())

    def to(self, device: torch.device | str) -> Condition:
        """Return the same condition on another device."""
        return replace(self._map(lambda tensor: tensor.to(device)), penalty=self.penalty.to(device))

    def vector(self) -> Tensor:
        """Return all generated numbers side by side, (n, total size of the factors)."""
        return torch.cat([value.flatten(1) for value in self.values.values()], 1)

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Return conditions one after another, as one condition.

        Args:
            conditions: At least one condition; all have the same factors and the same number of features.

        Returns:
            A condition whose n is the sum of theirs, and whose penalty is the mean of theirs.
        """
        first = conditions[0]
        values = {key: torch.cat([condition.values[key] for condition in conditions]) for key in first.values}
        features = torch.cat([condition.features for condition in conditions])  # (sum of n, d)
        penalty = torch.stack([condition.penalty for condition in conditions]).mean()
        return Condition(values, features, penalty)

    def save(self, path: str | Path) -> None:
        """Write the condition as one safetensors file, atomically.

        Args:
            path: The file; an existing file is replaced.
        """
        from safetensors.torch import save

        tensors = {f"values/{key}": value.detach().contiguous() for key, value in self.values.items()}
        tensors |= {"features": self.features.detach().contiguous(), "penalty": self.penalty.detach()}
        write_atomically(path, save(tensors, {"metalora": json.dumps({"kind": "condition", "version": 1})}))

    @staticmethod
    def load(path: str | Path) -> Condition:
        """Read a condition that `save` wrote.

        Args:
            path: The file.

        Returns:
            The condition, on the CPU.

        Raises:
            ValueError: The file does not exist, or is not a condition file.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(Path(path).read_bytes())
            values = {
                name.removeprefix("values/"): tensor for name, tensor in tensors.items() if name.startswith("values/")
            }
            return Condition(values, tensors["features"], tensors["penalty"])
        except FileNotFoundError:
            raise ValueError(f"{path}: no such condition file") from None
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path}: not a condition file ({error})") from None
