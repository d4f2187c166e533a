"""Warm starts: an adapter's factors from the base's own weights, or from one gradient.

From trained LoRAs: `metalora.io.lora.convert`. All three make low-rank pairs; `fitting.fit_updates` fits the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.adapters.targets import TRANSPOSED
from metalora.fitting.fit_updates import FitReport, fit_updates, fitted_pieces
from metalora.fitting.updates import LowRankUpdate
from metalora.ranks.groups import FactorGroup


@torch.no_grad()
def start_from_weights(model: nn.Module, rank: int) -> FitReport:
    """Start Delta W near the leading part of every weight, and take it from the base: W - Delta W + Delta W = W.

    PiSSA (arXiv:2404.02948): W = U S V', up = U_r S_r, down = V_r'. A shared network fits these pairs as far as it can;
    what is taken from the base is the Delta W it has, so the model computes what it did, up to rounding.

    rank  of each weight's part
    The base's weights change for good: `detach` leaves them reduced, and an adapter file is refused by any other base,
    so save the reduced base too, or reduce a fresh one in the same way before `load`.
    ValueError: no adapter, a Delta W that differs by example, weights shared by targets, what `fit` refuses.
    """
    adapter = _ready(model, "start_from_weights", rank)
    if adapter.per_example:
        raise ValueError(
            "start_from_weights: Delta W differs by example or task, so no one of them can be taken from the base"
        )
    weights = {path: layer.base.weight for path, layer in adapter.layers.items()}
    if len({id(weight) for weight in weights.values()}) < len(weights):
        raise ValueError("start_from_weights: two targets have one weight in common")
    report = fit_updates(adapter, [{path: _leading(adapter, path, weight, rank) for path, weight in weights.items()}])
    for path, weight in weights.items():
        weight.sub_(adapter.delta(path).to(weight.dtype))
    return report


def start_from_gradient(model: nn.Module, loss: Callable[[], Tensor], rank: int, size: float = 1e-2) -> FitReport:
    """Start Delta W along the negative gradient of a loss at the base's weights, one backward pass.

    Delta W ~ -c [dL/dW]_rank with c such that all pairs together have `size` times the norm of their weights: the model
    starts a small step downhill, not as the base.

    loss  calls the model and returns a scalar; the adapter is off while it runs
    Every task starts alike. ValueError: no adapter, a loss that no target's weight reaches, what `fit` refuses.
    """
    adapter = _ready(model, "start_from_gradient", rank)
    pairs = _downhill(adapter, loss, rank, "start_from_gradient")
    norm = _norm(pair.up for pair in pairs.values())  # rows of down are orthonormal
    factor = size * _norm(layer.base.weight.detach() for layer in adapter.layers.values()) / norm
    scaled = {path: LowRankUpdate(pair.down, pair.up * factor) for path, pair in pairs.items()}
    return fit_updates(adapter, [scaled] * adapter.config.tasks)


@torch.no_grad()
def atoms_from_gradient(model: nn.Module, loss: Callable[[], Tensor], rank: int) -> FitReport:
    """Start the columns of a CP as atoms of the negative gradient of a loss, their weights at zero: TensorPEFT's probe.

    T = - [dL/dW]_rank stacked over the modes that the method has; its leading rank-one parts, found one after another
    by the higher-order power method, are the columns, each of norm one. The weights are the factor over the bond alone
    that starts at zero, so the model starts as the base and its first step is downhill along the atoms.

    The report tells how much of the gradient the atoms have, at the weights of the power method.
    ValueError: what start_from_gradient refuses, and a method without such weights.
    """
    adapter = _ready(model, "atoms_from_gradient", rank)
    kinds, pieces = adapter.resolved.inits, fitted_pieces(adapter)
    weights = [f for f, term in adapter.method.network.factors.items() if len(term) == 1 and kinds[f] == "zeros"]
    if any(piece.topology != "shared bond" for piece in pieces) or len(weights) != 1:
        raise ValueError(
            f"atoms_from_gradient: {adapter.method.name!r} is no CP whose columns have weights that start at zero, as "
            "those of 'tensorpeft' and 'adalora'"
        )
    pairs = _downhill(adapter, loss, rank, "atoms_from_gradient")
    report = fit_updates(adapter, [pairs] * adapter.config.tasks, columns="deflated")
    for piece in pieces:
        for key, value in piece.scatter(_atoms(adapter, piece, weights[0]), adapter.factors).items():
            adapter.learned[key].copy_(value)
    return report


def _atoms(adapter: Adapter, piece: FactorGroup, weights: str) -> list[Tensor]:
    """The piece's factors with columns of norm one, together of the sign that they had, and no weights."""
    found, own = piece.gather(adapter.factors), piece.factors.index(weights)
    drawn = torch.Generator().manual_seed(0)  # for columns that a gradient of a lower rank has none for
    others = [torch.randn(tensor.shape, generator=drawn).to(tensor) for tensor in found]
    sign = torch.where(found[own] < 0, -1.0, 1.0)
    pairs = zip(found, others, strict=True)
    found = [nn.functional.normalize(torch.where(t.norm(dim=0) > 0, t, other), dim=0) for t, other in pairs]
    found[own] = torch.zeros_like(found[own])
    first = 0 if own else 1
    found[first] = found[first] * sign
    return found


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5


def _downhill(adapter: Adapter, loss: Callable[[], Tensor], rank: int, what: str) -> dict[str, LowRankUpdate]:
    """Path -> the leading part of the negative gradient of a loss at the base's weights."""
    weights = {path: layer.base.weight for path, layer in adapter.layers.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        with adapter.disabled(), torch.enable_grad():
            found = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    gradients = {path: g for path, g in zip(weights, found, strict=True) if g is not None}
    pairs = {path: _leading(adapter, path, -gradient, rank) for path, gradient in gradients.items()}
    if not _norm(pair.up for pair in pairs.values()) > 0:
        raise ValueError(f"{what}: the loss has no gradient at any target's weight")
    return pairs


def _ready(model: nn.Module, what: str, rank: int) -> Adapter:
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"{what}: {type(model).__name__} has no adapter")
    if adapter.merged:
        raise ValueError(f"{what}: the adapter is merged; unmerge it first")
    if rank < 1:
        raise ValueError(f"{what}: rank is {rank}, expected at least 1")
    return adapter


def _leading(adapter: Adapter, path: str, weight: Tensor, rank: int) -> LowRankUpdate:
    """The leading singular directions of a tensor in the layout of the target's weight; rows of down orthonormal."""
    if adapter.targets[path].kind in TRANSPOSED:
        weight = weight.mT
    u, s, v = torch.linalg.svd(weight.detach().flatten(1).double(), full_matrices=False)
    rank = min(rank, len(s))
    return LowRankUpdate(v[:rank].reshape(rank, *weight.shape[1:]), u[:, :rank] * s[:rank])
