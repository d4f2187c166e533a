"""Models whose weights accelerate keeps elsewhere, on the CPU or on a disk, and brings back layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from metalora._util.sharding import is_sharded
from metalora.adapters.held_matrix import HeldMatrix


class ParameterStore(nn.ParameterDict):
    """A dictionary of parameters that all layers of an adapter read.

    accelerate (`cpu_offload`, `disk_offload`, a device map) gives each module with parameters a hook, which moves them
    to the "meta" device and brings them back for the forward of this module. A dictionary has no forward, so its
    parameters would stay away. Here they are brought back at once, and the hook is not kept: an adapter is small.

    Example:
        >>> import torch
        >>> store = ParameterStore({"A": nn.Parameter(torch.ones(2))})
        >>> [*store], store["A"].device.type
        (['A'], 'cpu')
    """

    @property
    def _hf_hook(self) -> Any:
        raise AttributeError("a ParameterStore keeps no hook")  # accelerate asks whether there is one

    @_hf_hook.setter
    def _hf_hook(self, hook: Any) -> None:
        hook.pre_forward(self)


class BaseWeights(Mapping[str, Tensor]):
    """The weights of layers by path, each read when it is asked for, also if it is away.

    Args:
        bases: Path -> layer.

    Example:
        >>> weights = BaseWeights({"0": nn.Linear(4, 2)})
        >>> weights["0"].shape
        torch.Size([2, 4])
    """

    def __init__(self, bases: Mapping[str, nn.Module]):
        self.bases = bases

    def __getitem__(self, path: str) -> Tensor:
        base = self.bases[path]
        hook = _hook_of(base)
        if hook is None:
            return cast(Tensor, base.weight)
        return cast(Tensor, hook.weights_map["weight"].to(hook.execution_device))

    def __iter__(self) -> Iterator[str]:
        return iter(self.bases)

    def __len__(self) -> int:
        return len(self.bases)


def check_present(base: nn.Module, place: str) -> None:
    """Check that the weight of a layer is here, and can be written.

    Args:
        base: The layer.
        place: What it is called, such as "merge: target 'fc'".

    Raises:
        ValueError: accelerate keeps it elsewhere, or FSDP2 has spread it over processes.
    """
    if is_sharded(base):
        raise ValueError(
            f"{place}: FSDP2 has spread its weight over processes; save the adapter, load it into the network in one "
            "process and merge it there"
        )
    if _hook_of(base) is not None:
        raise ValueError(
            f"{place}: accelerate keeps its weight on another device, and only a copy (on the meta device here) could "
            "be changed: call accelerate.hooks.remove_hook_from_submodules(model) first"
        )


def check_matrix_present(matrix: HeldMatrix, path: str) -> None:
    """Check that a matrix that its module reads itself is here: the module reads it before accelerate brings it back.

    Args:
        matrix: The matrix.
        path: Path of the target.

    Raises:
        ValueError: accelerate keeps it elsewhere.
    """
    if _hook_of(matrix) is not None:
        raise ValueError(
            f"target {path!r}: accelerate keeps this parameter on another device; attach first, and then offload the "
            "model"
        )


def _hook_of(base: nn.Module) -> Any:
    """Return the hook of accelerate that has the weight of a layer; None if the weight is here."""
    if not getattr(base.weight, "is_meta", False):
        return None
    owner = base.holder if isinstance(base, HeldMatrix) else base
    outer = getattr(owner, "_hf_hook", None)
    hooks = getattr(outer, "hooks", (outer,))  # several hooks of a module are in one
    return next((hook for hook in hooks if getattr(hook, "weights_map", None) is not None), None)
