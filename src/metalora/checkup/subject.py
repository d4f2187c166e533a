"""The model of a check: a copy that runs, with inputs, and what the base alone gives for them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.features import Inputs
from metalora.checkup.inputs import candidates, described
from metalora.checkup.outputs import outputs, same_tensors, size_of

NOISE = 0.2  # deviation of the numbers that replace constants
CRASHES = Exception  # a check runs code of other people with guessed inputs: any error of it is a result


@dataclass(frozen=True)
class Subject:
    """A copy of a model, without an adapter, that runs on inputs.

    Attributes:
        model: The copy, in eval mode; in float64 if the model runs in it.
        inputs: What it runs on.
        base: The floating-point tensors that it gives.
    """

    model: nn.Module
    inputs: Inputs
    base: list[Tensor]

    def fresh(self) -> nn.Module:
        """Return a further copy of the model."""
        return copy.deepcopy(self.model)


def subject_of(model: nn.Module, example: Inputs | None) -> tuple[Subject | None, str]:
    """Return a copy of a model that runs, or None and why there is none.

    Args:
        model: The model; it is not changed.
        example: Inputs; None tries inputs that the model may take.

    Example:
        >>> subject, why = subject_of(nn.Sequential(nn.Linear(4, 2)), None)
        >>> subject.base[0].dtype, why
        (torch.float64, '')
    """
    first_reason = ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = without_constants(copy.deepcopy(model)).eval()
        doubled = _in_double(model)
        for inputs in [example] if example is not None else candidates(model):
            for candidate in [doubled, model] if doubled is not None else [model]:
                subject, reason = _tried(candidate, inputs)
                if subject is not None:
                    return subject, ""
                first_reason = first_reason or reason  # of the most likely inputs
    return None, first_reason or "no inputs are known for it: pass example=inputs"


@torch.no_grad()
def without_constants(model: nn.Module) -> nn.Module:
    """Add random numbers to the parameters of a model that hold one number, in place, and return the model.

    A new network often multiplies a branch by zeros, or by a very small number, and then nothing in the branch would
    change the output.

    Example:
        >>> norm = without_constants(nn.LayerNorm(3))
        >>> bool((norm.bias != 0).all())
        True
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(NOISE * torch.randn(parameter.shape).to(parameter))
    return model


def _in_double(model: nn.Module) -> nn.Module | None:
    """Return a copy of a model in float64; None if it has numbers in 16 or 8 bits, as quantised models have."""
    if any(tensor.itemsize == 1 and tensor.ndim > 1 for tensor in model.parameters()):
        return None
    return copy.deepcopy(model).double()


def _tried(model: nn.Module, inputs: Inputs) -> tuple[Subject | None, str]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    inputs = cast_floats(inputs, dtype)
    try:
        with torch.no_grad():
            base = outputs(model, inputs)
            again = outputs(model, inputs)
    except CRASHES as error:
        return None, f"it does not run on {described(inputs)}: {in_one_line(error)}"
    if not same_tensors(base, again):
        return None, "it gives another output every time"
    if not base or size_of(base) == 0:
        return None, "its output has no numbers to compare"
    return Subject(model, inputs, base), ""


def cast_floats(value: Any, dtype: torch.dtype) -> Any:
    """Return inputs with their floating-point tensors in a type.

    Example:
        >>> cast_floats([torch.zeros(1), torch.tensor([1])], torch.float64)
        [tensor([0.], dtype=torch.float64), tensor([1])]
    """
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping) or hasattr(value, "keys"):
        return {key: cast_floats(value[key], dtype) for key in value.keys()}
    if isinstance(value, (list, tuple)):
        return type(value)(cast_floats(part, dtype) for part in value)
    return value


def in_one_line(error: BaseException) -> str:
    """Return an error as one line of at most 300 characters.

    Example:
        >>> in_one_line(KeyError("a"))
        "KeyError: 'a'"
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
