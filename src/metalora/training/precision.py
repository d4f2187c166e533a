"""The precision of a training: autocast in the forward passes, and a scaled loss where gradients would vanish."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

LOWERED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How one training computes. Two trainings of a process may differ.

    In float16 small gradients are rounded to zero. Their loss is multiplied by a scale, and the gradients are divided
    by it before the step; a step whose scaled gradients overflow is left out, and the scale is halved.

    Args:
        name: "no", "bf16" or "fp16", as `TrainConfig.mixed_precision`.
        device: Where the model computes. Autocast lowers the operations of this kind of device alone.

    Example:
        >>> precision = Precision("bf16", torch.device("cpu"))
        >>> with precision.autocast():
        ...     nn.Linear(2, 2)(torch.ones(1, 2)).dtype
        torch.bfloat16
    """

    def __init__(self, name: Literal["no", "bf16", "fp16"], device: torch.device):
        self.device_type = device.type
        self.lowered = LOWERED.get(name)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled, and a step with gradients that are not finite is left out."""
        return self.scaler.is_enabled()

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which a forward pass computes in this precision; with "no" as it does outside."""
        if self.lowered is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.lowered)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, a scalar (), times the scale."""
        torch.autograd.backward(self.scaler.scale(loss))

    def step(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], clip: float) -> None:
        """Take a step of an optimiser.

        Args:
            optimizer: The optimiser.
            parameters: Its parameters.
            clip: Largest norm of all gradients together; larger ones are scaled down to it; 0: no limit.
        """
        if clip:
            self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, clip)
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: the scale and its history; nothing if the loss is not scaled."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.scaler.load_state_dict(state)
