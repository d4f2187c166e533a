"""How the forward of a layer depends on its weight: as torch's own layers do, or in a way of its class.

A subclass of Linear, Conv or Embedding may scale its output, pad its input, standardise its weight or return several
tensors. What it does is found by trying it on random numbers, without a change of the layer and of torch's generator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.convolutions import CLASSES, CONVOLUTIONS, GROUPED
from metalora.adapters.held_matrix import HeldMatrix
from metalora.adapters.stored_weight import is_parametrized, is_quantised

PLAIN_CLASSES: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "embedding": nn.Embedding,
    **CLASSES,
    **{grouped: CLASSES[kind] for kind, grouped in GROUPED.items()},
}
RANK, BATCH, POSITIONS = 2, 2, 3  # sizes of the trial
MOST_ROWS = 1000
OF_EVERY_MODULE = frozenset(vars(nn.Module()))  # such as its hooks, and whether it trains
TOLERANCE = 1e-8  # relative to the largest number of the output, in float64


class Dependence(Enum):
    """How f(x; W), the forward of a layer, depends on its weight W.

    Attributes:
        PLAIN: The class has the forward of torch's layer.
        SAME_UPDATE: f(x; W + Delta W) - f(x; W) is what torch's layer gives for Delta W: the update is computed as
            for a plain layer.
        LINEAR: It is f(x; Left) Right for Delta W = Left Right, and a change of the bias is added to the output: Left
            runs through the forward of the class.
        GENERAL: None of these: f(x; W + Delta W) itself is computed, with the forward of the class.
    """

    PLAIN = "plain"
    SAME_UPDATE = "same update"
    LINEAR = "linear"
    GENERAL = "general"


@dataclass(frozen=True)
class Trial:
    """What a trial of a layer's forward has shown.

    Attributes:
        dependence: How it depends on the weight.
        error: Why the layer cannot be adapted, as the end of a sentence; empty if it can.
        returns_tensor: Whether it returns a single tensor.
    """

    dependence: Dependence
    error: str = ""
    returns_tensor: bool = True


def is_plain(base: nn.Module, kind: str) -> bool:
    """Whether the class of a layer has the forward of torch's layer of its kind.

    Example:
        >>> is_plain(nn.Linear(4, 2), "linear")
        True
    """
    if kind == "conv1d_gpt2":  # by name, so that transformers is not imported for models that have no such layer
        return type(base).__name__ == "Conv1D" and type(base).__module__ == "transformers.pytorch_utils"
    if isinstance(base, HeldMatrix):  # it is never called
        return True
    return type(base).forward is PLAIN_CLASSES[kind].forward


def try_forward(base: nn.Module, kind: str) -> Trial:
    """Find out how the forward of a layer depends on its weight.

    Args:
        base: The layer; neither it nor torch's generator is changed.
        kind: Its kind, as `metalora.adapters.targets.kind_of` says it.

    Example:
        >>> class Doubled(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> try_forward(Doubled(4, 2, bias=False), "linear").dependence
        <Dependence.LINEAR: 'linear'>
    """
    if is_plain(base, kind):
        return Trial(Dependence.PLAIN)
    if is_quantised(base.weight):  # only a bridge adapts such layers, and adds the update to what they return
        return Trial(Dependence.SAME_UPDATE)
    if any(buffer.is_meta for buffer in base.buffers()):  # there are no numbers to try it with
        return Trial(Dependence.GENERAL)
    settings = _settings(base)
    if settings is None:
        return _try(base, kind)
    if settings not in _TRIALS:
        if len(_TRIALS) >= MOST_TRIALS:
            _TRIALS.clear()
        _TRIALS[settings] = _try(base, kind)
    return _TRIALS[settings]


_TRIALS: dict[Hashable, Trial] = {}  # blocks of a network are alike, and `attach` asks several times for a layer
MOST_TRIALS = 1000


def _settings(base: nn.Module) -> Hashable | None:
    """Return what the forward of a layer can depend on in addition to its input and parameters; None if that is more.

    It is more if the layer has modules, buffers of more than one number, or attributes that are not plain values.
    """
    values: list[Hashable] = []
    for name, value in vars(base).items():
        value = tuple(value) if isinstance(value, list) else value
        if name in OF_EVERY_MODULE:
            continue
        # A tuple may hold what cannot be compared as it is.
        if not isinstance(value, (bool, int, float, str, type(None))) and not _is_plain_tuple(value):
            return None
        values.append((name, value))
    for name, buffer in base._buffers.items():
        if buffer is None or buffer.numel() != 1:
            return None
        values.append((name, float(buffer)))
    shapes = tuple((name, None if p is None else (*p.shape,)) for name, p in base._parameters.items())
    return None if base._modules else (type(base), shapes, tuple(values))


def _is_plain_tuple(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, (bool, int, float, str)) for part in value)


def _try(base: nn.Module, kind: str) -> Trial:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            return _Attempt(base, kind, generator).trial()
        except Exception as error:  # whatever the class raises on numbers of this type
            reason = str(error).strip().split("\n")[0][:200]
            message = (
                f"its forward, that of {type(base).__name__}, could not be tried ({type(error).__name__}: {reason})"
            )
            return Trial(Dependence.GENERAL, message)


def run_with(base: nn.Module, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """Run a layer with other tensors in the place of its own parameters, and leave the layer as it is.

    Args:
        base: The layer.
        tensors: Name of a parameter -> the tensor in its place.
        *args: The layer's input, such as (*, i).
        **kwargs: Its keyword arguments.

    Returns:
        What the layer returns.

    Example:
        >>> base = nn.Linear(2, 1, bias=False)
        >>> run_with(base, {"weight": torch.ones(1, 2)}, torch.tensor([3.0, 4.0]))
        tensor([7.])
    """
    # A compiler traces the first way only; a forward that was set on the instance would run the layer's own tensors.
    if torch.compiler.is_compiling() or "forward" in vars(base):
        return torch.func.functional_call(base, dict(tensors), args, kwargs)
    return _with_tensors(base, tensors)(*args, **kwargs)  # a copy: another thread may run the layer itself


def _with_tensors(base: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a layer that shares all but its parameters of these names."""
    assert not is_parametrized(base), "its weight is no parameter that could be replaced"
    layer = _shallow_copy(base)
    vars(layer)["_parameters"] = {**base._parameters, **tensors}
    return layer


def _shallow_copy(base: nn.Module) -> nn.Module:
    """Return a layer with the attributes of another; `copy.copy` would run what the class does to be pickled."""
    layer: nn.Module = object.__new__(type(base))
    vars(layer).update(vars(base))
    return layer


class _Attempt:
    """Runs the forward of a layer with random numbers in float64 on the CPU.

    Args:
        base: The layer.
        kind: Its kind.
        generator: Where the random numbers come from.
    """

    def __init__(self, base: nn.Module, kind: str, generator: torch.Generator):
        self.base, self.kind, self.generator = base, kind, generator
        self.layer = _in_float64(base, generator)
        shape = list(cast(Tensor, base.weight).shape)
        if kind == "embedding":  # a part of the vocabulary is enough, and is quick
            shape[0] = min(shape[0], max(MOST_ROWS, 1 + (cast(Any, base).padding_idx or 0)))
        self.weight = self.random(*shape)
        self.has_left = kind not in CONVOLUTIONS or kind in ("conv1d", "conv2d")  # it has one Left for all outputs
        if self.has_left:
            transposed = kind in ("conv1d_gpt2", "embedding")
            outputs = shape[1] if transposed else shape[0]
            inputs = (shape[0],) if transposed else tuple(shape[1:])
            left, self.right = self.random(RANK, *inputs), self.random(outputs, RANK)  # (k, i, *kernel), (o, k)
            product = torch.einsum("ok,k...->o...", self.right, left)
            self.left, self.delta = (tensor.mT if transposed else tensor for tensor in (left, product))
        else:
            outputs, self.delta = cast(Any, base).out_channels, self.random(*shape)
        has_bias = isinstance(base._parameters.get("bias"), Tensor)
        self.bias = self.random(outputs) if has_bias else None
        self.shift = self.random(outputs) if has_bias else None

    def random(self, *shape: int) -> Tensor:
        """Return random numbers of any shape."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def inputs(self) -> list[Tensor]:
        """Return inputs (b, t, i), pictures of two sizes (b, i, *positions), or ids (b, t)."""
        if self.kind == "embedding":
            rows = min(len(self.weight), 5)
            return [torch.arange(BATCH * POSITIONS).reshape(BATCH, POSITIONS) % rows]
        if self.kind in ("linear", "conv1d_gpt2"):
            features = self.weight.shape[0 if self.kind == "conv1d_gpt2" else 1]
            return [self.random(BATCH, POSITIONS, features)]
        layer = cast(Any, self.base)
        sides = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        smallest = [dilation * (kernel - 1) + 1 + stride for kernel, stride, dilation in sides]
        sizes = [[side + more for side in smallest] for more in (0, 1)]  # some classes pad odd sizes in another way
        return [self.random(BATCH, layer.in_channels, *size) for size in sizes]

    def trial(self) -> Trial:
        """Return what the trial shows."""
        inputs = self.inputs()
        before = [self.run(x, self.weight, self.bias) for x in inputs]
        shifted = None if self.bias is None or self.shift is None else self.bias + self.shift
        after = [self.run(x, self.weight + self.delta, shifted) for x in inputs]
        if not any(_differ(old, new) for old, new in zip(before, after, strict=True)):
            return Trial(Dependence.GENERAL, f"{type(self.base).__name__} does not compute with its `weight`")
        if all(isinstance(value, Tensor) for value in (*before, *after)):
            for dependence, forward in self.ways().items():
                if self.explains(forward, inputs, before, after):
                    return Trial(dependence)
            return Trial(Dependence.GENERAL)
        return Trial(Dependence.GENERAL, returns_tensor=False)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        """Run the layer's own forward on x, with other numbers as weight (*weight) and bias (o,)."""
        tensors = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        layer = _with_tensors(self.layer, tensors)
        return type(layer).forward(layer, x)

    def ways(self) -> dict[Dependence, Callable[[Tensor], Tensor]]:
        """Return the cheap ways to compute x Left, (b, .., i) -> (b, .., k): as torch's layer, and as this class."""
        if not self.has_left:
            return {}
        bias = None if self.bias is None else torch.zeros(RANK, dtype=torch.float64)

        def plain(x: Tensor) -> Tensor:
            if self.kind == "conv1d_gpt2":
                return x @ self.left
            layer = _with_tensors(self.layer, {"weight": self.left} | ({} if bias is None else {"bias": bias}))
            return cast(Tensor, PLAIN_CLASSES[self.kind].forward(layer, x))

        return {Dependence.SAME_UPDATE: plain, Dependence.LINEAR: lambda x: self.run(x, self.left, bias)}

    def explains(
        self, hidden: Callable[[Tensor], Tensor], inputs: list[Tensor], before: list[Tensor], after: list[Tensor]
    ) -> bool:
        """Whether (x Left) Right and the shift of the bias are what W + Delta W changes at the output."""
        axis = 1 if self.kind in ("conv1d", "conv2d") else -1
        for x, old, new in zip(inputs, before, after, strict=True):
            try:
                update = hidden(x).movedim(axis, -1) @ self.right.mT + (0 if self.shift is None else self.shift)
            except Exception:  # the class does not run with k outputs
                return False
            actual = (new - old).movedim(axis, -1)
            if update.shape != actual.shape or (update - actual).abs().max() > TOLERANCE * new.abs().max():
                return False
        return True


def _in_float64(base: nn.Module, generator: torch.Generator) -> nn.Module:
    """Return a copy of a layer in eval mode, with its buffers and modules in float64 on the CPU.

    Its further parameters, such as gains, get numbers from 0.5 to 1.5: with zeros the weight would seem unused.
    """
    layer = _shallow_copy(base)
    vars(layer).pop("forward", None)  # one that was set on the instance runs the original
    vars(layer)["training"] = False
    vars(layer)["_buffers"] = {name: _number_in_float64(buffer) for name, buffer in base._buffers.items()}
    children = {name: copy.deepcopy(child) for name, child in base._modules.items() if child is not None}
    vars(layer)["_modules"] = {name: child.to("cpu", torch.float64).eval() for name, child in children.items()}
    vars(layer)["_parameters"] = {
        name: None
        if parameter is None or name in ("weight", "bias")
        else 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in base._parameters.items()
    }
    return layer


def _number_in_float64(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    copied = tensor.detach().to("cpu", copy=True)
    return copied.double() if copied.is_floating_point() else copied


def _differ(old: Any, new: Any) -> bool:
    """Whether two outputs, tensors or tuples of them, differ."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return not torch.equal(old, new)
    if isinstance(old, (tuple, list)) and isinstance(new, (tuple, list)):
        return any(_differ(first, second) for first, second in zip(old, new, strict=True))
    return False
