"""What a suite is: the data, the frozen model, the loss and the scores of one run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

Record = TypeVar("Record")


class Suite(Protocol):
    """The experiment of one run. `metalora_papers.registry` makes the suite that a run's configuration names.

    `metalora_papers.execution` uses it in this order: it attaches an adapter to `model` (or none), calls `prepare`,
    trains with `train_step`, and scores with `evaluate`. The model is on the device that
    `metalora._util.processes.default_device` names, and a suite moves each batch there; data are drawn on the CPU, so
    that they are the same on every machine.
    """

    averaged_losses: int
    """A row holds the mean of so many losses at the end of training."""

    @property
    def model(self) -> nn.Module:
        """The frozen network that the adapter is attached to."""

    @property
    def trained_model(self) -> nn.Module:
        """`model` with what is around it, such as heads; its parameters that require a gradient are trained too."""

    @property
    def example(self) -> Tensor | None:
        """Inputs from which `attach` learns the width of the features; None lets it guess them."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of a language model; None for images."""

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Make what the adapter needs on these data.

        Args:
            adapter: The adapter that is attached to `model`, if any.
            training: True before training: the condition of a generated adapter is then calibrated, and heads may
                learn. False for an adapter that was loaded from its file.
        """

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the loss of batch number `step`, a scalar; equal numbers give equal batches."""

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Record what is watched during training, after the optimiser's step."""

    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the scores of the model as it is."""

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return what only the run that has just trained can report, in addition to the scores."""

    def extra_modules(self) -> nn.Module | None:
        """Return the trained modules that are saved in the adapter's file, such as heads; None if there are none."""


def count_trained(module: nn.Module) -> int:
    """Return how many numbers of a module are trained.

    Example:
        >>> count_trained(nn.Linear(3, 2)), count_trained(nn.Linear(3, 2).requires_grad_(False))
        (8, 0)
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model runs, which is where its inputs belong.

    Example:
        >>> device_of(nn.Linear(3, 2))
        device(type='cpu')
    """
    return next(model.parameters()).device


def on_device(record: Record, device: torch.device) -> Record:
    """Return a dataclass whose tensors are on a device; its other fields are as they were.

    Args:
        record: An instance of a dataclass.
        device: The device.
    """
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}  # type: ignore[arg-type]
    tensors = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return dataclasses.replace(record, **tensors)  # type: ignore[type-var]
