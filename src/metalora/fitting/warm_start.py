"""Warm starts: an adapter's factors from the base's own weights, or from one gradient.

From trained LoRAs: `metalora.io.lora.convert`. All of them make low-rank updates, and `fitting.fit_updates` fits the
factors to these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.adapters.stored_weight import check_not_parametrized
from metalora.adapters.targets import TRANSPOSED
from metalora.fitting.fit_updates import FitReport, fit_updates, fitted_groups
from metalora.fitting.updates import LowRankUpdate
from metalora.ranks.groups import FactorGroup


@torch.no_grad()
def start_from_weights(model: nn.Module, rank: int) -> FitReport:
    """Start Delta W near the leading part of every weight, and subtract it from the base: (W - Delta W) + Delta W = W.

    PiSSA (arXiv:2404.02948): W = U S V', up = U_r S_r, down = V_r'. A shared network fits these updates as far as it
    can. The Delta W that it has is subtracted from the base, so the model computes what it did, up to rounding.

    The base's weights change for good: `detach` leaves them reduced, and an adapter file is refused by any other base.
    So save the reduced base too, or reduce a fresh one in the same way before `load`.

    Args:
        model: A model with an adapter.
        rank: The rank of every weight's part.

    Returns:
        How near Delta W is to these parts.

    Raises:
        ValueError: The model has no adapter, Delta W differs by example, targets share a weight, or `fit_updates`
            refuses the adapter.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> x = torch.randn(2, 8)
        >>> before = model(x)
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> report = start_from_weights(model, rank=2)
        >>> torch.allclose(model(x), before, atol=1e-5), bool(adapter.delta("0").norm() > 0)
        (True, True)
    """
    adapter = _ready_adapter(model, "start_from_weights", rank)
    if adapter.per_example:
        raise ValueError(
            "start_from_weights: Delta W differs by example or task, so there is not one to subtract from the base"
        )
    weights = _base_weights(adapter)
    # each of the two would subtract its own part from the one weight
    if len({id(weight) for weight in weights.values()}) < len(weights):
        raise ValueError("start_from_weights: two targets have one weight in common")
    updates = {path: _leading_update(adapter, path, weight, rank) for path, weight in weights.items()}
    report = fit_updates(adapter, [updates])
    for path, weight in weights.items():
        # what the fit reached, not what was asked for, so that W stays the sum
        weight.sub_(adapter.delta(path).to(weight.dtype))
    return report


def start_from_gradient(model: nn.Module, loss: Callable[[], Tensor], rank: int, size: float = 1e-2) -> FitReport:
    """Start Delta W along the negative gradient of a loss at the base's weights, by one backward pass.

    Delta W ~ -c [dL/dW]_rank with c such that all updates together have `size` times the norm of their weights: the
    model starts a small step downhill, not as the base. Every task starts alike.

    Args:
        model: A model with an adapter.
        loss: Calls the model and returns a scalar; the adapter is off while it runs.
        rank: The rank of every weight's update.
        size: The norm of all updates, as a fraction of that of all weights.

    Returns:
        How near Delta W is to the updates.

    Raises:
        ValueError: The model has no adapter, the loss has no gradient at any target's weight, or `fit_updates` refuses
            the adapter.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> x = torch.randn(2, 8)
        >>> before = model(x).square().mean()
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> report = start_from_gradient(model, lambda: model(x).square().mean(), rank=2)
        >>> bool(model(x).square().mean() < before)
        True
    """
    adapter = _ready_adapter(model, "start_from_gradient", rank)
    updates = _downhill_updates(adapter, loss, rank, "start_from_gradient")
    gradient_norm = _total_norm(update.up for update in updates.values())  # the rows of down are orthonormal
    weight_norm = _total_norm(weight.detach() for weight in _base_weights(adapter).values())
    factor = size * weight_norm / gradient_norm
    scaled = {path: LowRankUpdate(update.down, update.up * factor) for path, update in updates.items()}
    return fit_updates(adapter, [scaled] * adapter.config.tasks)


@torch.no_grad()
def atoms_from_gradient(model: nn.Module, loss: Callable[[], Tensor], rank: int) -> FitReport:
    """Start the columns of a CP as rank-one parts of the negative gradient, their weights at zero: TensorPEFT's probe.

    T = - [dL/dW]_rank is stacked over the modes that the method has. Its leading rank-one parts, one after another by
    the higher-order power method, are the columns, each of norm one. The weights are the factor over the bond alone
    that starts at zero, so the model starts as the base and its first step is downhill along the columns.

    Args:
        model: A model with an adapter.
        loss: Calls the model and returns a scalar; the adapter is off while it runs.
        rank: The rank of every weight's gradient.

    Returns:
        How much of the gradient the columns have, at the weights of the power method.

    Raises:
        ValueError: What `start_from_gradient` refuses, and a method without such weights.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("adalora", rank=2, targets=("0",)))
        >>> report = atoms_from_gradient(model, lambda: model(torch.ones(1, 8)).square().mean(), rank=2)
        >>> bool(adapter.delta("0").any())
        False
    """
    adapter = _ready_adapter(model, "atoms_from_gradient", rank)
    groups = fitted_groups(adapter)
    weight_factors = [
        factor
        for factor, modes in adapter.method.network.factors.items()
        if len(modes) == 1 and adapter.resolved.inits[factor] == "zeros"
    ]
    if any(group.topology != "shared bond" for group in groups) or len(weight_factors) != 1:
        raise ValueError(
            f"atoms_from_gradient: {adapter.method.name!r} is not a CP whose columns have weights that start at zero, "
            "as those of 'tensorpeft' and 'adalora'"
        )
    updates = _downhill_updates(adapter, loss, rank, "atoms_from_gradient")
    report = fit_updates(adapter, [updates] * adapter.config.tasks, columns="deflated")
    for group in groups:
        unit_columns = _unit_columns(adapter, group, weight_factors[0])
        for key, value in group.scatter(unit_columns, adapter.factors).items():
            adapter.learned[key].copy_(value)
    return report


def _unit_columns(adapter: Adapter, group: FactorGroup, weight_factor: str) -> list[Tensor]:
    """The factors (n, r) of a group with columns of norm one, which keep their common sign, and weights of zero."""
    factors = group.gather(adapter.factors)
    weights = group.factors.index(weight_factor)
    generator = torch.Generator().manual_seed(0)  # for columns of zeros, if the gradient has a lower rank
    random = [torch.randn(factor.shape, generator=generator).to(factor) for factor in factors]
    signs = torch.where(factors[weights] < 0, -1.0, 1.0)  # (n, r) with n = 1: those of the columns' weights
    # a column of zeros has no direction: a random one in its place can still get a gradient
    unit = [
        nn.functional.normalize(torch.where(factor.norm(dim=0) > 0, factor, random_factor), dim=0)
        for factor, random_factor in zip(factors, random, strict=True)
    ]
    unit[weights] = torch.zeros_like(unit[weights])
    first = 1 if weights == 0 else 0  # a factor that keeps the signs, which would go with the weights
    unit[first] = unit[first] * signs
    return unit


def _total_norm(tensors: Iterable[Tensor]) -> float:
    """The Frobenius norm of all tensors together."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _base_weights(adapter: Adapter) -> dict[str, Tensor]:
    """Path -> the base's weight, (out, in), (out, in, kh, kw), or (in, out) for the kinds in `TRANSPOSED`."""
    weights: dict[str, Tensor] = {}
    for path, layer in adapter.layers.items():
        weight = layer.get_submodule("base").weight
        assert isinstance(weight, Tensor)
        weights[path] = weight
    return weights


def _downhill_updates(adapter: Adapter, loss: Callable[[], Tensor], rank: int, caller: str) -> dict[str, LowRankUpdate]:
    """Path -> the leading part of the negative gradient of a loss at the base's weights."""
    for path, layer in adapter.layers.items():
        check_not_parametrized(layer.base, path, caller)
    weights = _base_weights(adapter)
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        # the gradient of the base's weight W is that of W + Delta W at Delta W = 0
        with adapter.running_frozen(), torch.enable_grad():
            gradients = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    finally:  # the base stays frozen, also if the loss fails
        for weight in weights.values():
            weight.requires_grad_(False)
    updates = {
        path: _leading_update(adapter, path, -gradient, rank)
        for path, gradient in zip(weights, gradients, strict=True)
        if gradient is not None  # of a target that the loss does not use
    }
    if not _total_norm(update.up for update in updates.values()) > 0:  # not "<= 0", which NaN would pass
        raise ValueError(f"{caller}: the loss has no gradient at any target's weight")
    return updates


def _ready_adapter(model: nn.Module, caller: str, rank: int) -> Adapter:
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"{caller}: {type(model).__name__} has no adapter")
    if adapter.merged:
        raise ValueError(f"{caller}: the adapter is merged; unmerge it first")
    if rank < 1:
        raise ValueError(f"{caller}: rank is {rank}, expected at least 1")
    return adapter


def _leading_update(adapter: Adapter, path: str, tensor: Tensor, rank: int) -> LowRankUpdate:
    """The leading part of a tensor in the layout of the target's weight.

    Returns:
        down (rank, in) or (rank, in, kh, kw), with orthonormal rows, and up (out, rank).
    """
    if adapter.targets[path].kind in TRANSPOSED:
        tensor = tensor.mT  # stored as (in, out)
    matrix = tensor.detach().flatten(1).double()  # (out, in · kernel)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rank = min(rank, len(s))
    down = v[:rank].reshape(rank, *tensor.shape[1:])
    up = u[:, :rank] * s[:rank]  # the norm of the update is that of up alone
    return LowRankUpdate(down, up)
