"""What the factors of each target do: they change the output, and get a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.features import Inputs
from metalora.adapters.layout import read_slice
from metalora.checkup.hosts import Attached
from metalora.checkup.outputs import distance, outputs, size_of, tensors_of, tolerance
from metalora.checkup.report import Answer
from metalora.checkup.subject import CRASHES, Subject, in_one_line

SCALES = (0.1, 0.3, 1.0)  # of the random factors, tried in turn until the update is visible
VISIBLE = 3e-3  # an update is visible if it changes the output by this part of it
DID_NOT_RUN = Answer("unknown", "did not run in this forward")
YES = Answer("yes")


@dataclass
class Call:
    """The first call of a layer in a forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: list[Tensor]


@dataclass
class Recording:
    """The first call of every layer that ran, by path."""

    calls: dict[str, Call] = field(default_factory=dict)


@contextmanager
def recording(layers: Mapping[str, nn.Module]) -> Iterator[Recording]:
    """Record the first call of every layer inside.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> with recording({"0": layer}) as recorded:
        ...     _ = layer(torch.zeros(3, 4))
        >>> recorded.calls["0"].output[0].shape
        torch.Size([3, 2])
    """
    recorded = Recording()

    def hook(path: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if path not in recorded.calls:
                copies = tuple(copied(value) for value in args), {name: copied(v) for name, v in kwargs.items()}
                recorded.calls[path] = Call(*copies, [copied(tensor) for tensor in tensors_of(output)])

        return record

    handles = [layer.register_forward_hook(hook(path), with_kwargs=True) for path, layer in layers.items()]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def copied(value: Any) -> Any:
    """Return a copy of a tensor, since the model may write into it later; anything else as it is."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def one_condition(adapter: Adapter, inputs: Inputs) -> Condition | None:
    """Return one condition for all examples, for an adapter whose factors differ by example or task; otherwise None."""
    if not adapter.per_example:
        return None
    made = adapter.condition(inputs).mean() if adapter.conditional else None
    if not adapter.task_keys:
        return made
    task = adapter.task(0)
    if made is None:
        return task
    return Condition({**made.values, **task.values}, made.features, made.penalty)


@torch.no_grad()
def randomise(host: Attached, subject: Subject) -> list[Tensor]:
    """Add random numbers to all that is learned, until the update is visible in the output.

    Returns:
        The output with the adapter.
    """
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in host.adapter.parameters() if parameter.is_floating_point()]
    starts = [parameter.detach().clone() for parameter in parameters]
    live: list[Tensor] = []
    for scale in SCALES:
        for parameter, start in zip(parameters, starts, strict=True):
            noise = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(start)
            parameter.copy_(start + scale * noise)
        condition = one_condition(host.adapter, subject.inputs)
        if condition is not None:
            host.adapter.fix(condition)
        live = outputs(host.model, subject.inputs)
        if distance(subject.base, live) > VISIBLE * size_of(subject.base):
            break
    return live


@dataclass(frozen=True)
class Backward:
    """A forward with gradients, and its backward.

    Attributes:
        forward: Whether the forward gives the output of the one without gradients.
        has_gradient: For each target whether all its factors have a gradient.
        error: The error of the backward; empty if there was none.
    """

    forward: Answer
    has_gradient: dict[str, bool]
    error: str = ""


def gradients(host: Attached, subject: Subject, live: list[Tensor]) -> Backward:
    """Run a forward with gradients, compare it with the one without, and run a backward.

    Args:
        host: The adapted model, with random factors.
        subject: The base and its inputs.
        live: The output without gradients.
    """
    adapter = host.adapter
    adapter.zero_grad()
    condition = one_condition(adapter, subject.inputs)
    with contextlib.nullcontext() if condition is None else adapter.using(condition):
        tensors = outputs(host.model, subject.inputs)
    if distance(live, [tensor.detach() for tensor in tensors]) > tolerance(subject.base, live):
        return Backward(Answer("no", "a forward with gradients gives another output than one without"), {})
    try:
        run_backward(tensors)
    except CRASHES as error:
        return Backward(YES, {}, in_one_line(error))
    return Backward(YES, {path: _has_gradient(adapter, path) for path in adapter.targets})


def run_backward(tensors: list[Tensor]) -> None:
    """Run the backward of a random projection of tensors, as far as they have a gradient.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> run_backward([2 * x, torch.zeros(3)])
        >>> x.grad.shape
        torch.Size([2])
    """
    generator = torch.Generator().manual_seed(1)
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        if tensor.requires_grad:
            weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            total = total + (tensor.nan_to_num(0, 0, 0) * weights).sum().double()
    if total.requires_grad:
        total.backward()  # type: ignore[no-untyped-call]


def _has_gradient(adapter: Adapter, path: str) -> bool:
    """Return True if all that is learned for a target has a finite gradient that is not zero."""
    learned = adapter.learned
    found = []
    for view in adapter.layout.targets[path].views.values():
        if view.key in learned:
            gradient = learned[view.key].grad
            found.append(None if gradient is None else read_slice(gradient, view))
    if not found and adapter.conditioner is not None:
        found = [parameter.grad for parameter in adapter.conditioner.parameters()]
        found = [gradient for gradient in found if gradient is not None] or [None]
    return bool(found) and all(_is_useful(gradient) for gradient in found)


def _is_useful(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())


@torch.no_grad()
def changes_output(host: Attached, subject: Subject, live: list[Tensor], path: str) -> bool:
    """Return True if the output changes when the update of one target is left out."""
    layer: Any = host.layers[path]
    base = layer.base if hasattr(layer, "base") else layer.base_layer
    layer.forward = base.forward
    try:
        return distance(live, outputs(host.model, subject.inputs)) > 0
    finally:
        del layer.forward


@torch.no_grad()
def weight_matters(subject: Subject, path: str) -> bool:
    """Return True if another weight at a path changes the output of the base."""
    model = subject.fresh()
    module = model.get_submodule(path)
    weight = module.weight
    assert isinstance(weight, Tensor)
    changed = weight + weight.abs().mean() * torch.randn_like(weight)
    if sum(weight is own for other in model.modules() for own in other.parameters(recurse=False)) > 1:
        module.weight = nn.Parameter(changed)  # tied: the other module keeps the weight that it has
    else:
        weight.copy_(changed)  # in place, since the model may hold the tensor itself
    return distance(subject.base, outputs(model, subject.inputs)) > 0


def weight_is_trained(subject: Subject, path: str) -> bool:
    """Return True if the weight at a path gets a gradient in the base."""
    model = subject.fresh().requires_grad_(False)
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    weight.requires_grad_(True)
    run_backward(outputs(model, subject.inputs))
    return _is_useful(weight.grad)


def base_runs_backward(subject: Subject) -> bool:
    """Return True if the base runs a backward with respect to all its parameters."""
    model = subject.fresh()
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        run_backward(outputs(model, subject.inputs))
    except CRASHES:
        return False
    return True
