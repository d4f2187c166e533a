"""A condition: generated factors for n examples, with the features that they were made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

import torch
from torch import Tensor

from metalora._util.described import Described
from metalora._util.sending import sent
from metalora.adapters.readable import is_readable

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

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
    index = torch.as_tensor(ids).reshape(-1)  # a single number becomes (1,)
    if is_readable(index) and len(index):
        numbers = index.cpu()  # a GPU that has them is waited for once, and no GPU otherwise
        wrong = numbers[(numbers < 0) | (numbers >= tasks)]
        # Booleans and fractions compare like numbers, but they are not task ids.
        if index.is_floating_point() or index.dtype == torch.bool or len(wrong):
            raise ValueError(f"task {(wrong if len(wrong) else numbers)[0]}: expected 0..{tasks - 1}")
    return sent(index, device)


@dataclass(frozen=True)
class Origin:
    """What a file says of the adapter that made its condition.

    Attributes:
        record: The digests of the adapter and of its base, as JSON.
        file: The file.
    """

    record: str
    file: str


@dataclass(frozen=True)
class Maker:
    """The adapter that made a condition in memory.

    Attributes:
        reference: The adapter, for as long as it lives.
        swaps: How often its numbers had been replaced by those of another file.
    """

    reference: ReferenceType[Adapter]
    swaps: int

    def adapter(self) -> Adapter | None:
        """Return the adapter; None if it does not live any more.

        Raises:
            ValueError: Its numbers have been replaced since by those of another file.
        """
        adapter = self.reference()
        if adapter is not None and adapter.sharing.swaps != self.swaps:
            raise ValueError(
                "the condition was made before swap put the numbers of another file into its adapter: make it again"
            )
        return adapter


@dataclass(frozen=True, repr=False)
class Condition(Described):
    """Generated factors for n examples (n = 1: one condition for all), and the features that they were made from.

    Attributes:
        values: Key of a stored factor -> its values, (n, *factor shape).
        features: The features, (n, d), as the mapping net reads them.
        penalty: Mean square of c - c0, a scalar that may be added to a loss.
        maker: The adapter that made it, for as long as that adapter lives; None for one that was made by hand, and for
            a copy.
        origin: The adapter that it must be used with, of a condition that was loaded; otherwise None.

    Example:
        >>> condition = Condition({"C": torch.ones(3, 2, 2)}, torch.zeros(3, 5), torch.tensor(0.0))
        >>> len(condition), len(condition[1]), len(condition.mean()), condition.vector().shape
        (3, 1, 1, torch.Size([3, 4]))
        >>> len(Condition.stack([condition, condition]))
        6
        >>> condition.save("condition.safetensors")
        >>> loaded = Condition.load("condition.safetensors", check_base=False)  # made by hand, by no adapter
        >>> torch.equal(loaded.values["C"], condition.values["C"])
        True
    """

    values: dict[str, Tensor]
    features: Tensor
    penalty: Tensor
    maker: Maker | None = field(default=None, compare=False)
    origin: Origin | None = field(default=None, compare=False)

    def description(self) -> dict[str, str]:
        """Return what `print` and a notebook show: how many examples, of which factors, and whose."""
        numbers = sum(value[:1].numel() for value in self.values.values())
        kinds = dict.fromkeys(f"{value.dtype}".removeprefix("torch.") for value in self.values.values())
        return {
            "examples": str(len(self)),
            "factors": f"{len(self.values)} ({', '.join([*self.values][:4])}{', ...' if len(self.values) > 4 else ''})",
            "numbers": f"{numbers:,} for each example, {', '.join(kinds)} on {self.features.device}",
            "features": f"{self.features.shape[1]:,} for each example",
            "made by": self._maker_in_words(),
        }

    def _maker_in_words(self) -> str:
        if self.origin is not None:
            return f"the adapter of {self.origin.file}"
        adapter = None if self.maker is None else self.maker.reference()
        return "no adapter that still lives" if adapter is None else f"a {adapter.method.name} adapter"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle and a copy hold: not the adapter, of which there may be a copy, too."""
        return {**vars(self), "maker": None}

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

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> Condition:
        """Return the same condition on another device or in another type.

        Args:
            device: The device; None: it stays where it is.
            dtype: The type of values, features and penalty, such as float16 to store it; None: it stays as it is.

        Raises:
            ValueError: The type is not a floating one.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"a condition has floating numbers, it cannot be converted to {dtype}")
        converted = self._map(lambda tensor: tensor.to(device=device, dtype=dtype))
        return replace(converted, penalty=self.penalty.to(device=device, dtype=dtype))

    def vector(self) -> Tensor:
        """Return all generated numbers side by side, (n, total size of the factors)."""
        return torch.cat([value.flatten(1) for value in self.values.values()], 1)

    @staticmethod
    def stack(conditions: Sequence[Condition]) -> Condition:
        """Return conditions one after another, as one condition.

        Args:
            conditions: At least one condition; all have the same factors and the same number of features.

        Returns:
            A condition whose n is the sum of theirs, and whose penalty is the mean of theirs. It has no features,
            (n, 0), if theirs differ in number.

        Raises:
            ValueError: Different adapters made two of them.
        """
        first = conditions[0]
        maker, origin = common_maker(conditions), common_origin(conditions)
        values = {key: torch.cat([condition.values[key] for condition in conditions]) for key in first.values}
        all_features = [condition.features for condition in conditions]
        width = first.features.shape[1] if len({features.shape[1] for features in all_features}) == 1 else 0
        features = torch.cat([features[:, :width] for features in all_features])  # (sum of n, d)
        penalty = torch.stack([condition.penalty for condition in conditions]).mean()
        return Condition(values, features, penalty, maker, origin)

    def save(self, path: str | Path, *, features: bool = True) -> None:
        """Write the condition as one safetensors file, atomically, with digests of its adapter and its base as of now.

        Args:
            path: The file; an existing file is replaced.
            features: Whether the file has the features, which no forward needs; without them the file is smaller, and
                the condition that is loaded has none, (n, 0).

        Raises:
            ValueError: A number is not finite, the values are of different numbers of examples, or the file could not
                be written.
        """
        from metalora.io.condition_file import save_condition

        save_condition(self if features else replace(self, features=self.features[:, :0]), path)

    @staticmethod
    def load(path: str | Path, *, check_base: bool = True) -> Condition:
        """Read a condition that `save` wrote. An adapter takes it if it is the one that made it, on the same base.

        Args:
            path: The file.
            check_base: Whether any other adapter, and this one on another base, refuses the condition.

        Returns:
            The condition, on the CPU.

        Raises:
            ValueError: The file does not exist, is damaged or of another version, or holds no condition.

        Warns:
            UserWarning: The file does not say which adapter made the condition, as files of version 1 of the format,
                so that any adapter takes it.
        """
        from metalora.io.condition_file import load_condition

        return load_condition(path, check_base)


def common_maker(conditions: Iterable[Condition]) -> Maker | None:
    """Return the adapter that made all conditions, apart from those that were made by hand; None for none.

    Raises:
        ValueError: Two adapters made them, of which one is not a replica or a copy of the other.
    """
    from metalora.adapters.conditioning.check import same_adapter

    makers = [condition.maker for condition in conditions if condition.maker is not None]
    alive = [adapter for maker in makers if (adapter := maker.adapter()) is not None]
    for adapter in {id(adapter): adapter for adapter in alive}.values():  # each once: a batch has one condition a row
        if not same_adapter(alive[0], adapter):
            raise ValueError(
                f"conditions of different adapters ({alive[0].method.name} and {adapter.method.name}), or of one "
                "before and after further training: keep those of each adapter apart"
            )
    return makers[0] if makers else None


def common_origin(conditions: Iterable[Condition]) -> Origin | None:
    """Return the origin of those conditions that were loaded; ValueError if they have different ones."""
    origins = [condition.origin for condition in conditions if condition.origin is not None]
    for origin in origins:
        if origin.record != origins[0].record:
            raise ValueError(f"conditions of different adapters: {origins[0].file} and {origin.file}")
    return origins[0] if origins else None
