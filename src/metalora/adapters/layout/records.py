"""The records of a layout: which factors are stored, and what every target reads of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from torch import Tensor

from metalora.adapters.mechanisms import Handler
from metalora.adapters.targets import Target
from metalora.tensornet.network import Network
from metalora.tensornet.spec import Modes

Index = int | tuple[int, int]  # one slice of an axis, or (start, length) of several


@dataclass(frozen=True)
class FactorParam:
    """A factor as it is stored.

    Attributes:
        factor: Its name in the method.
        modes: Its modes, in the order of its axes.
        shape: Their sizes.
        owner: Who has this copy: the path of a target, a layer or a projection ("layer0.proj1"), "" for the model.
        frozen: True if it is not learned.
    """

    factor: str
    modes: Modes
    shape: tuple[int, ...]
    owner: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class FactorSlice:
    """What a target reads of a stored factor.

    Attributes:
        key: Key of the stored factor.
        index: (axis, index) of the axes that are not read as a whole, the last axis first.
    """

    key: str
    index: tuple[tuple[int, Index], ...] = ()


def read_slice(value: Tensor, factor_slice: FactorSlice, offset: int = 0) -> Tensor:
    """What a target reads of a stored factor.

    Args:
        value: The stored factor, `(*leading, *shape)`.
        factor_slice: What the target reads.
        offset: Number of leading axes, such as 1 for a factor that differs by example.

    Returns:
        `(*leading, *shape)` without the axes of which a single slice is read, and with shorter ones.

    Example:
        >>> import torch
        >>> stacked = torch.arange(12).reshape(2, 3, 2)  # (layer, in, r)
        >>> read_slice(stacked, FactorSlice("A", ((1, (0, 2)), (0, 1))))  # layer 1, the first two inputs
        tensor([[6, 7],
                [8, 9]])
    """
    for axis, index in factor_slice.index:
        if isinstance(index, int):
            value = value.select(axis + offset, index)
        else:
            start, length = index
            value = value.narrow(axis + offset, start, length)
    return value


@dataclass(frozen=True)
class TargetLayout:
    """One target of a layout.

    Attributes:
        target: The target.
        network: The network at the target, without the modes that the target indexes.
        sizes: Sizes of the network's modes.
        coords: Layer and projection of the target, if the method counts them.
        views: Factor -> what the target reads of it.
        handlers: What the method's mechanisms do here, in their order.
    """

    target: Target
    network: Network
    sizes: dict[str, int]
    coords: dict[str, Index]
    views: dict[str, FactorSlice]
    handlers: tuple[Handler, ...] = ()

    @property
    def bias_factors(self) -> tuple[str, ...]:
        """The factors that are added to the output: those outside of the product that no mechanism reads itself."""
        of_handlers = {factor for handler in self.handlers for factor in handler.own_factors()}
        return tuple(factor for factor in self.network.biases if factor not in of_handlers)

    @property
    def reads_as_stored(self) -> bool:
        """Whether the network contracts the stored factors themselves, unchanged by any mechanism."""
        return not any(handler.rewrites() for handler in self.handlers)

    def differing_factors(self, per_example: Collection[str]) -> tuple[str, ...]:
        """The factors of the network that differ by example, if these stored factors do."""
        names = list(per_example)
        for handler in self.handlers:  # in their order: a handler may depend on what an earlier one has made
            names += handler.dependent_factors(names)
        return tuple(names)


@dataclass(frozen=True)
class Layout:
    """The layout of a method's factors over the targets of a model.

    Attributes:
        targets: Path -> layout of the target, in the model's order.
        params: Key -> stored factor.

    Example:
        >>> from torch import nn
        >>> from metalora import AdapterConfig, find_targets
        >>> from metalora.adapters.layout import build_layout
        >>> from metalora.methods.resolve import resolve
        >>> targets = find_targets(nn.Sequential(nn.Linear(8, 4)), "0")
        >>> build_layout(targets, resolve(AdapterConfig("lora", rank=2))).num_params()
        24
    """

    targets: dict[str, TargetLayout]
    params: dict[str, FactorParam]

    def num_params(self) -> int:
        """Closed form of the learned numbers in all factors; each stored factor is counted once."""
        return sum(prod(param.shape) for param in self.params.values() if not param.frozen)

    def shapes_of(self, factors: Collection[str]) -> dict[str, tuple[int, ...]]:
        """Key -> shape of all stored copies of these factors."""
        return {key: param.shape for key, param in self.params.items() if param.factor in factors}

    def stack_axes(self) -> dict[str, int]:
        """Key -> the axis of a stored factor of which every target reads one slice; without task axes."""
        axes: dict[str, int] = {}
        for target in self.targets.values():
            for view in target.views.values():
                single = [axis for axis, index in view.index if isinstance(index, int)]
                # Slices over tasks come from the condition; and `single` has the last axis first, so [-1] is the first.
                if single and "task" not in self.params[view.key].modes:
                    axes.setdefault(view.key, single[-1])
        return axes
