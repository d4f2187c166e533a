"""Warm starts: an adapter's factors from the base's own weights, or from one gradient.

From trained LoRAs: `metalora.io.convert`. All three make low-rank pairs, and `adapters.fit` fits the factors to them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of
from metalora.adapters.fit import FitReport, fit
from metalora.adapters.updates import Pair

TRANSPOSED = ("conv1d_gpt2", "embedding")  # kinds whose weight is (in, out)


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
    report = fit(adapter, [{path: _leading(adapter, path, weight, rank) for path, weight in weights.items()}])
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
    norm = sum(float(pair.up.double().square().sum()) for pair in pairs.values()) ** 0.5  # rows of down: orthonormal
    if not norm > 0:
        raise ValueError("start_from_gradient: the loss has no gradient at any target's weight")
    factor = size * sum(float(w.detach().double().square().sum()) for w in weights.values()) ** 0.5 / norm
    scaled = {path: Pair(pair.down, pair.up * factor) for path, pair in pairs.items()}
    return fit(adapter, [scaled] * adapter.config.tasks)


def _ready(model: nn.Module, what: str, rank: int) -> Adapter:
    adapter = adapter_of(model)
    if adapter is None:
        raise ValueError(f"{what}: {type(model).__name__} has no adapter")
    if adapter.merged:
        raise ValueError(f"{what}: the adapter is merged; unmerge it first")
    if rank < 1:
        raise ValueError(f"{what}: rank is {rank}, expected at least 1")
    return adapter


def _leading(adapter: Adapter, path: str, weight: Tensor, rank: int) -> Pair:
    """The leading singular directions of a tensor in the layout of the target's weight; rows of down orthonormal."""
    if adapter.targets[path].kind in TRANSPOSED:
        weight = weight.mT
    u, s, v = torch.linalg.svd(weight.detach().flatten(1).double(), full_matrices=False)
    rank = min(rank, len(s))
    return Pair(v[:rank].reshape(rank, *weight.shape[1:]), u[:, :rank] * s[:rank])
