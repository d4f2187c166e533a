"""A module sees W + Delta W in the place of a parameter while it runs: for matrices that no layer multiplies.

Legend: n matrices of a stack · k rank of the form · i, o channels in and out.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.held_matrix import SUBSTITUTED, HeldMatrix, readers_of
from metalora.adapters.host import own_forward
from metalora.adapters.layers.base import AdaptedLayer
from metalora.adapters.layers.mergeable import MergeableLayer

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


class SubstitutedParameter(nn.Module):
    """A parameter in whose place W + Delta W stands while a module that reads it runs.

    It is registered in the holder of the parameter. Threads run such a module one after another, since they share it.

    Args:
        holder: The module that has the parameter.
        name: Name of the parameter.
        layers: Number of a matrix in the stack, or None -> its layer, whose base is a `HeldMatrix`.

    Attributes:
        replaced: The parameter, while W + Delta W stands in its place; None otherwise.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Identity(), nn.MultiheadAttention(4, 2))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=2, targets="in_proj_weight"))
        >>> type(model[1].adapted_in_proj_weight).__name__
        'SubstitutedParameter'
    """

    def __init__(self, holder: nn.Module, name: str, layers: Mapping[int | None, MergeableLayer]):
        super().__init__()
        self._holder = (holder,)  # a tuple: the holder registers this module, and not the other way round
        self.name = name
        self.layers = nn.ModuleDict({_key(index): layer for index, layer in layers.items()})
        self.replaced: tuple[Tensor] | None = None  # a tuple hides the parameter from nn.Module
        self.outer: list[tuple[Tensor, tuple[Tensor] | None]] = []  # what stood there before each `enter`
        self.lock = ModuleLock()

    def layer_of(self, index: int | None) -> MergeableLayer | None:
        """Return the layer of a matrix; None if this matrix is not adapted."""
        return cast("MergeableLayer | None", self.layers._modules.get(_key(index)))

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
        layers = [cast(MergeableLayer, layer) for layer in self.layers.values()]
        enabled = layers[0].owner[0].current().enabled
        for layer in layers:
            layer.check_base(enabled)
        active = [layer for layer in layers if layer.original is None]  # a merged weight holds Delta W already
        if not enabled or not active:
            return parameter
        return adapted_parameter(active) if standing is parameter else standing


def _key(index: int | None) -> str:
    return WHOLE if index is None else str(index)


# ---- W + Delta W ----------------------------------------------------------------------------------------------------
def adapted_parameter(layers: Sequence[MergeableLayer]) -> Tensor:
    """Return a parameter with the updates of its matrices, rounded once to its type as a merge does it.

    Args:
        layers: The layers of some matrices of one parameter.

    Returns:
        (out, in) or (matrices, out, in), as the parameter stores it.
    """
    matrices = [cast(HeldMatrix, layer.base) for layer in layers]
    parameter = matrices[0].parameter
    # Autocast would round the factors before Delta W is added; the module itself casts the sum.
    with torch.autocast(parameter.device.type, enabled=False):
        updates = stacked_updates(layers)  # (n, o, i) or (n, i, o)
        if parameter.ndim == 2:
            adapted = updates[0] + parameter
        elif len(layers) == len(parameter):
            adapted = updates + parameter
        else:
            index = torch.tensor([matrix.index for matrix in matrices], device=parameter.device)
            adapted = parameter.to(updates.dtype).index_add(0, index, updates)
        return adapted.to(parameter.dtype)


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
    by_reader: dict[nn.Module, list[SubstitutedParameter]] = {}
    for (holder, name), layers in by_parameter.items():
        substituted = SubstitutedParameter(holder, name, layers)
        for reader in readers_of(adapter.model, paths[holder, name]):
            by_reader.setdefault(reader, []).append(substituted)
        holder.add_module(SUBSTITUTED + name, substituted)
    for reader, parameters in by_reader.items():
        _guard(reader, parameters)


def restore_parameters(model: nn.Module) -> None:
    """Undo `substitute`: every module has its own forward again, and no layer of a matrix."""
    for module in list(model.modules()):
        _unguard(module)
    for module in list(model.modules()):
        for name in [name for name, child in module._modules.items() if isinstance(child, SubstitutedParameter)]:
            del module._modules[name]


def _guard(reader: nn.Module, parameters: list[SubstitutedParameter]) -> None:
    replaced = vars(reader).get("forward")  # None if the module runs the forward of its class
    # A partial of a function at module level: a closure could not be pickled.
    guarded = functools.partial(_run, reader, parameters, replaced)
    functools.update_wrapper(guarded, reader.forward)
    reader.forward = guarded


def _unguard(reader: nn.Module) -> None:
    forward = vars(reader).get("forward")
    if not isinstance(forward, functools.partial) or forward.func is not _run:
        return
    _, parameters, replaced = forward.args
    parameters.clear()  # somebody else may have kept the partial
    del reader.forward
    if replaced is not None:
        reader.forward = replaced


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
