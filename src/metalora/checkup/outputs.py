"""Run a model the same way again and again, and compare what it gives."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.features import Inputs, run

OF_THE_UPDATE = 1e-4  # two outputs are the same if they differ by less than this part of the update
OF_THE_OUTPUT = 4e-6  # and this part of the output: many models compute their norms in float32


def tensors_of(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of what a model returns, whatever it is; caches of keys are left out.

    Example:
        >>> [tensor.shape for tensor in tensors_of({"logits": torch.zeros(2, 3), "ids": torch.tensor([1])})]
        [torch.Size([2, 3])]
    """
    if isinstance(output, Tensor):
        if output.is_complex():
            yield torch.view_as_real(output)
        elif output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            if key != "past_key_values":
                yield from tensors_of(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in output:
            yield from tensors_of(value)


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Run a model on a copy of inputs, with the same random numbers every time.

    Args:
        model: The model.
        inputs: A tensor, positional arguments or keyword arguments.

    Returns:
        The floating-point tensors of its output.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.Dropout())
        >>> x = torch.ones(3, 4)
        >>> same_tensors(outputs(model, x), outputs(model, x))
        True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(tensors_of(run(model, copy.deepcopy(inputs))))


def same_tensors(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Return True if two outputs are equal, bit for bit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference of two outputs; infinity if their shapes differ or a number is not finite.

    Example:
        >>> distance([torch.zeros(2)], [torch.ones(2)]), distance([torch.zeros(2)], [torch.ones(3)])
        (1.0, inf)
    """
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return float("inf")
    largest = 0.0
    for one, two in zip(first, second, strict=True):
        both_alike = (one == two) | (one.isnan() & two.isnan())  # also infinities, such as those of a mask
        difference = torch.where(both_alike, 0, (one - two).abs()).nan_to_num(float("inf"), float("inf"))
        largest = max(largest, float(difference.max()) if difference.numel() else 0.0)
    return largest


def size_of(tensors: Sequence[Tensor]) -> float:
    """Return the largest finite absolute value of an output.

    Example:
        >>> size_of([torch.tensor([1.0, -2.0, float("inf")])])
        2.0
    """
    return max((float(tensor.abs().nan_to_num(0, 0).max()) for tensor in tensors if tensor.numel()), default=0.0)


def tolerance(base: Sequence[Tensor], live: Sequence[Tensor]) -> float:
    """Return by how much an output may differ from a live one and still count as the same.

    Args:
        base: The output of the base alone.
        live: The output with the adapter.
    """
    return OF_THE_UPDATE * distance(base, live) + OF_THE_OUTPUT * size_of(live)
