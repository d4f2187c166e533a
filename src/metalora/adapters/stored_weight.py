"""Where a layer stores its weight: in a parameter, or in the parts from which a parametrization computes it."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

QUANTISED = "quantised weights are not adapted"
QUANTISING_LIBRARIES = ("torchao", "bitsandbytes")
TOLERANCE = 1e-6  # relative, of a float64 weight that a parametrization stores and computes again


def why_not_writable(base: nn.Module) -> tuple[str, str]:
    """Return why W + Delta W cannot be stored in a layer: with its details, and without them; empty if it can.

    Args:
        base: A layer with a weight; it is not changed.

    Example:
        >>> layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))
        >>> why_not_writable(layer)[0].partition(";")[0]
        'its weight is computed by _SpectralNorm, which cannot give W + Delta W'
        >>> why_not_writable(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
        ('', '')
    """
    # First, since to read such a weight may change what it is computed from.
    if is_parametrized(base) and not is_parametrized(base, "bias"):
        return _why_parametrization_cannot(base)
    weight = base.weight
    if is_quantised(weight):
        is_of_library = type(weight) not in (Tensor, nn.Parameter)
        described = type(weight).__name__ if is_of_library else cast(Tensor, weight).dtype
        return f"its weight is {described}; {QUANTISED}", QUANTISED
    for name in ("weight", "bias"):
        if isinstance(getattr(base, name, None), Tensor) and name not in base._parameters:
            reason = f"its {name} is no parameter, but computed from others"
            return (f"{reason}; store it as one, such as by torch.nn.utils.remove_weight_norm(layer)",) * 2
    return "", ""


def is_quantised(weight: object) -> bool:
    """Whether a weight is stored in a coarser way than as numbers of 16 bits or more.

    Example:
        >>> is_quantised(torch.zeros(2, dtype=torch.int8)), is_quantised(torch.zeros(2, dtype=torch.bfloat16))
        (True, False)
    """
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return True
    return type(weight).__module__.partition(".")[0] in QUANTISING_LIBRARIES


def check_not_parametrized(base: nn.Module, path: str, caller: str) -> None:
    """Raise a ValueError if a parametrization computes the weight of a layer, so that it cannot be set or trained.

    Args:
        base: The layer.
        path: Its path, for the message.
        caller: What needs the weight itself, for the message.
    """
    if is_parametrized(base):
        raise ValueError(
            f"{caller}: the weight of target {path!r} is computed by a parametrization; remove it first, "
            'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight"), or exclude the target'
        )


def write_weight(base: nn.Module, weight: Tensor) -> None:
    """Let a layer have another weight (*weight), in place; through a parametrization up to rounding."""
    if is_parametrized(base):
        base.weight = weight
    else:
        cast(Tensor, base.weight).data.copy_(weight)


class KeptWeight:
    """A copy of what a layer stores for its weight, which restores it bit for bit.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> weight, kept = layer.weight.detach().clone(), KeptWeight(layer)
        >>> write_weight(layer, torch.ones(1, 2))
        >>> kept.restore(layer)
        >>> torch.equal(layer.weight, weight)
        True
    """

    def __init__(self, base: nn.Module):
        self.copies = [tensor.detach().clone() for tensor in _stored_tensors(base)]

    def weight(self, base: nn.Module) -> Tensor:
        """Return the kept weight (*weight) of the layer, which has not changed yet."""
        return cast(Tensor, base.weight).detach().clone() if is_parametrized(base) else self.copies[0]

    def pairs(self, base: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return each tensor that the layer stores for its weight, of any shape, and its copy."""
        return list(zip(_stored_tensors(base), self.copies, strict=True))

    def restore(self, base: nn.Module) -> None:
        """Put the copies back into the layer that they are of."""
        for tensor, copied in self.pairs(base):
            tensor.data.copy_(copied)


def _stored_tensors(base: nn.Module) -> list[Tensor]:
    if not is_parametrized(base):
        return [cast(Tensor, base.weight)]
    parts = _parametrization(base)
    return [*parts.parameters(), *parts.buffers()]


def is_parametrized(base: nn.Module, name: str = "weight") -> bool:
    """Whether the weight or the bias of a layer is computed by a parametrization of `torch.nn.utils.parametrize`.

    Example:
        >>> is_parametrized(nn.Linear(2, 1))
        False
    """
    return parametrize.is_parametrized(base, name)


def _parametrization(base: nn.Module) -> parametrize.ParametrizationList:
    lists = cast(nn.ModuleDict, base.parametrizations)
    return cast(parametrize.ParametrizationList, lists["weight"])


def _why_parametrization_cannot(base: nn.Module) -> tuple[str, str]:
    parts = _parametrization(base)
    names = ", ".join(type(part).__name__ for part in parts.children() if not isinstance(part, nn.ParameterList))
    layer_class: Any = type(base).__bases__[0]  # parametrize has made a subclass of the layer's class
    if layer_class.forward.__module__.startswith("torch.nn.") and _gives_back(parts):
        return "", ""
    reason = f"its weight is computed by {names}, which cannot give W + Delta W"
    advice = (
        'remove it first, torch.nn.utils.parametrize.remove_parametrizations(layer, "weight"), or exclude the layer'
    )
    return (f"{reason}; {advice}",) * 2


def _gives_back(parts: parametrize.ParametrizationList) -> bool:
    """Whether a parametrization computes a weight again that was stored in its parts; tried on a copy."""
    if any(tensor.is_meta for tensor in (*parts.parameters(), *parts.buffers())):
        return True  # there are no numbers to try it with
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trial = copy.deepcopy(parts).to("cpu", torch.float64).eval()
        try:
            weight = trial()
            generator = torch.Generator().manual_seed(0)
            change = torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * weight.std()
            trial.right_inverse(weight + change)
            return bool(torch.allclose(trial(), weight + change, rtol=TOLERANCE, atol=TOLERANCE * float(weight.std())))
        except (NotImplementedError, RuntimeError, ValueError):
            return False
