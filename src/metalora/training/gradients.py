"""Gradients between the backward pass and the step: their mean over processes, and whether they are finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metalora._util.processes import process_count


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradients by their means over all processes of torch.distributed, by a single all-reduce.

    Adapters have few parameters, so this needs no wrapper around the model, and ranks may change between two steps.

    Args:
        parameters: The same parameters in every process. Those that require no gradient are left alone. A missing
            gradient counts as zero, and stays missing if no process has one: an optimiser leaves the parameter out.

    Example:
        >>> average_gradients([nn.Parameter(torch.zeros(2))])  # nothing happens in a single process
    """
    processes = process_count()
    if processes == 1:
        return
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    # A parameter may have no gradient in one process only, and all processes must send equally many numbers.
    gradients = [torch.zeros_like(parameter) if parameter.grad is None else parameter.grad for parameter in learned]
    present = torch.tensor([float(parameter.grad is not None) for parameter in learned])  # (parameters,)
    flat = torch.cat([value.flatten().to(gradients[0].device) for value in (*gradients, present)])  # (all numbers,)
    torch.distributed.all_reduce(flat)
    *means, present = torch.split(flat / processes, [*(gradient.numel() for gradient in gradients), len(learned)])
    for parameter, mean, share in zip(learned, means, present.tolist(), strict=True):
        parameter.grad = mean.view_as(parameter).to(parameter) if share else None


def finite_loss(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter], step: int) -> float:
    """Return the mean loss of a step, after a check that no loss and no gradient would bring NaN into the parameters.

    A GPU is waited for once, for all numbers together.

    Args:
        losses: The losses of the parts of the step, one number each.
        parameters: The parameters whose gradients are checked; a missing gradient is left out.
        step: Number of the step, for the message.

    Raises:
        ValueError: A loss or a gradient is infinite or NaN.

    Example:
        >>> factor = nn.Parameter(torch.zeros(2))
        >>> factor.grad = torch.tensor([1.0, float("inf")])
        >>> finite_loss([torch.tensor(0.5)], [factor], step=7)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: step 7: a gradient is not finite; lower the learning rate or check the data
    """
    finite = [parameter.grad.isfinite().all() for parameter in parameters if parameter.grad is not None]
    numbers = [loss.reshape(()) for loss in losses]
    if finite:
        flags = torch.stack([flag.to(numbers[0].device) for flag in finite])  # a model may lie on several devices
        numbers.append(flags.all().to(numbers[0].dtype))
    values: list[float] = torch.stack(numbers).tolist()
    remedy = "lower the learning rate or check the data"
    for value in values[: len(losses)]:
        if not math.isfinite(value):
            raise ValueError(f"step {step}: the loss is {value}; {remedy}")
    if finite and not values[-1]:
        raise ValueError(f"step {step}: a gradient is not finite; {remedy}")
    return sum(values[: len(losses)]) / len(losses)
