"""A module sees W + Delta W in the place of a parameter while it runs: for matrices that no layer multiplies.

Legend: n matrices of a stack · k rank of the form · i, o channels in and out.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.held_matrix import SUBSTITUTED, HeldMatrix, readers_of
from metalora.adapters.host import own_forward
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.layers.mergeable import MergeableLayer
from metalora.adapters.replaced_method import is_replaced, replace_method, restore_method

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter

WHOLE = "whole"
"""The key of the layer of a parameter that is one matrix; those of a stack have their numbers."""


class ModuleLock:
    """A lock that the thread which holds it may take again; a copy of it is another lock.

    Example:
        >>> import copy
        >>> lock = ModuleLock()
        >>> with lock, lock, copy.deepcopy(lock):
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return ModuleLock, ()


class SubstitutedParameter(nn.Module, ABC):
    """A parameter in whose place W + Delta W stands while a module that reads it runs.

    It is registered in the holder of the parameter. Threads run such a module one after another, since they share it.

    Args:
        holder: The module that has the parameter.
        name: Name of the parameter.

    Attributes:
        replaced: The parameter, while W + Delta W stands in its place; None otherwise.
    """

    def __init__(self, holder: nn.Module, name: str):
        super().__init__()
        self._holder = (holder,)  # a tuple: the holder registers this module, and not the other way round
        self.name = name
        self.replaced: tuple[Tensor] | None = None  # a tuple hides the parameter from nn.Module
        self.outer: list[tuple[Tensor, tuple[Tensor] | None]] = []  # what stood there before each `enter`
        self.lock = ModuleLock()

    @abstractmethod
    def layer_of(self, index: int | None) -> MergeableLayer | None:
        """Return a layer of a matrix of the stack, or of the whole parameter (None); None if it is not adapted."""

    @abstractmethod
    def active_layers(self) -> list[list[MergeableLayer]]:
        """Return the layers whose updates are to be added now, adapter by adapter; none if the parameter is W.

        Raises:
            ValueError: The frozen network is to run, and a merged weight holds Delta W.
        """

    def forward(self, x: Any) -> Any:
        """Return the input: an `nn.Sequential` holder calls all its children, and this is one of them."""
        return x

    def enter(self) -> None:
        """Put W + Delta W in the place of the parameter, or W if the adapter is off; `leave` ends it.

        This thread alone runs the modules that read the parameter until then, also if they read W.
        """
        # torch.compile traces no lock, and runs what it has traced without this function.
        if not torch.compiler.is_compiling():
            self.lock.__enter__()
        try:
            standing = self._holder[0]._parameters[self.name]
            assert standing is not None
            parameter = standing if self.replaced is None else self.replaced[0]
            wanted = self._wanted(parameter, standing)
        except BaseException:
            self._unlock()
            raise
        self.outer.append((standing, self.replaced))
        self._put(wanted, None if wanted is parameter else (parameter,))

    def leave(self) -> None:
        """Put back what stood there before `enter`."""
        self._put(*self.outer.pop())
        self._unlock()

    def _put(self, value: Tensor, replaced: tuple[Tensor] | None) -> None:
        self._holder[0]._parameters[self.name] = cast(nn.Parameter, value)
        self.replaced = replaced

    def _unlock(self) -> None:
        if not torch.compiler.is_compiling():
            self.lock.__exit__()

    def _wanted(self, parameter: Tensor, standing: Tensor) -> Tensor:
        """Return what is to stand in the place of the parameter, all in its shape.

        Args:
            parameter: The parameter itself.
            standing: What stands there now: W + Delta W inside of another module that reads it.
        """
        active = self.active_layers()
        if not active:
            return parameter
        return adapted_parameter(active) if standing is parameter else standing


class AttachedParameter(SubstitutedParameter):
    """A parameter that `metalora.attach` has adapted.

    Args:
        holder: The module that has the parameter.
        name: Name of the parameter.
        layers: Number of a matrix in the stack, or None -> its layer, whose base is a `HeldMatrix`.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Identity(), nn.MultiheadAttention(4, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="in_proj_weight"))
        >>> type(model[1].adapted_in_proj_weight).__name__
        'AttachedParameter'
    """

    def __init__(self, holder: nn.Module, name: str, layers: Mapping[int | None, MergeableLayer]):
        super().__init__(holder, name)
        self.layers = nn.ModuleDict({_key(index): layer for index, layer in layers.items()})

    def layer_of(self, index: int | None) -> MergeableLayer | None:
        """Return the layer of a matrix; None if this matrix is not adapted."""
        return cast("MergeableLayer | None", self.layers._modules.get(_key(index)))

    def active_layers(self) -> list[list[MergeableLayer]]:
        """Return the layers that are not merged; none if the adapter is off."""
        layers = [cast(MergeableLayer, layer) for layer in self.layers.values()]
        enabled = layers[0].owner[0].current().enabled
        for layer in layers:
            layer.check_base(enabled)
        active = [layer for layer in layers if layer.original is None]  # a merged weight holds Delta W already
        return [active] if enabled and active else []


def _key(index: int | None) -> str:
    return WHOLE if index is None else str(index)


# ---- W + Delta W ----------------------------------------------------------------------------------------------------
def adapted_parameter(layers_by_adapter: Sequence[Sequence[MergeableLayer]]) -> Tensor:
    """Return a parameter with the updates of its matrices, rounded once to its type as a merge does it.

    Args:
        layers_by_adapter: The layers of some matrices of one parameter, adapter by adapter.

    Returns:
        (out, in) or (matrices, out, in), as the parameter stores it.
    """
    first = cast(HeldMatrix, layers_by_adapter[0][0].base)
    parameter = first.parameter
    # Autocast would round the factors before Delta W is added; the module itself casts the sum.
    without_autocast = nullcontext() if parameter.is_meta else torch.autocast(parameter.device.type, enabled=False)
    with without_autocast:
        adapted = parameter
        for layers in layers_by_adapter:
            adapted = _add_updates(adapted, layers)
        return adapted.to(parameter.dtype)


def _add_updates(parameter: Tensor, layers: Sequence[MergeableLayer]) -> Tensor:
    """Return a parameter with the updates of one adapter, in its shape and in the type of the factors."""
    updates = stacked_updates(layers)  # (n, o, i) or (n, i, o)
    if parameter.ndim == 2:
        return updates[0] + parameter
    if len(layers) == len(parameter):
        return updates + parameter
    index = torch.tensor([cast(HeldMatrix, layer.base).index for layer in layers], device=parameter.device)
    return parameter.to(updates.dtype).index_add(0, index, updates)


def stacked_updates(layers: Sequence[MergeableLayer]) -> Tensor:
    """Return the Delta W of matrices of equal shape, by one product for all if their forms allow it.

    Args:
        layers: Layers of matrices.

    Returns:
        (n, out, in), or (n, in, out) for matrices that are stored so, in the type of the factors.
    """
    plain = [layer for layer in layers if isinstance(layer, AdaptedLayer)]
    ranks = {None if layer.low_rank is None or layer.bound.rescalers else layer.low_rank.left_rank for layer in plain}
    if len(plain) < len(layers) or None in ranks or len(ranks) > 1:
        return torch.stack([layer.delta(None) for layer in layers])
    lefts = torch.stack([layer.left(None) for layer in plain])  # (n, k, i)
    ups = torch.stack([layer.up(None) for layer in plain])  # (n, k, o)
    return lefts.mT @ ups if cast(HeldMatrix, plain[0].base).transposed else ups.mT @ lefts


# ---- in a model -----------------------------------------------------------------------------------------------------
def substitute(adapter: Adapter) -> None:
    """Let the modules of a model see W + Delta W of the adapter's matrices while they run.

    The modules stay where they are; `model.forward` of those that read a matrix becomes a `functools.partial`.

    Args:
        adapter: An adapter whose layers are made; those of matrices are registered in the holders.
    """
    by_parameter: dict[tuple[nn.Module, str], dict[int | None, MergeableLayer]] = {}
    paths: dict[tuple[nn.Module, str], str] = {}
    for path, layer in adapter.layers.items():
        if isinstance(layer.base, HeldMatrix) and isinstance(layer, MergeableLayer):
            place = (layer.base.holder, layer.base.name)
            by_parameter.setdefault(place, {})[layer.base.index] = layer
            paths.setdefault(place, path)
    for (holder, name), layers in by_parameter.items():
        install(adapter.model, paths[holder, name], AttachedParameter(holder, name, layers))


def install(model: nn.Module, path: str, substituted: SubstitutedParameter) -> None:
    """Register a substituted parameter in its holder, and let it run around the modules that read the parameter.

    Args:
        model: The model.
        path: Path of the matrix, or of one in the stack.
        substituted: The parameter.
    """
    for reader in readers_of(model, path):
        if is_replaced(reader, "forward", _run):
            cast(Any, reader.forward).args[1].append(substituted)
        else:
            replace_method(reader, "forward", _run, [substituted])
    substituted._holder[0].add_module(SUBSTITUTED + substituted.name, substituted)


def restore_parameters(model: nn.Module) -> None:
    """Undo `install` of all parameters: every module has its own forward again, and no layer of a matrix."""
    for module in list(model.modules()):
        _restore_forward(module)
    for module in list(model.modules()):
        for name in [name for name, child in module._modules.items() if isinstance(child, SubstitutedParameter)]:
            del module._modules[name]


def _restore_forward(reader: nn.Module) -> None:
    if is_replaced(reader, "forward", _run):
        cast(Any, reader.forward).args[1].clear()  # somebody else may have kept the partial
        restore_method(reader, "forward", _run)


def _run(
    reader: nn.Module,
    parameters: Sequence[SubstitutedParameter],
    replaced: Callable[..., Any] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run the forward of a module with W + Delta W in the place of some parameters."""
    entered: list[SubstitutedParameter] = []
    try:
        for parameter in parameters:
            parameter.enter()
            entered.append(parameter)
        return own_forward(reader, replaced, args, kwargs)
    finally:
        for parameter in reversed(entered):
            parameter.leave()
