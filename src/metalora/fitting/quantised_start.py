"""LoftQ (arXiv:2310.08659): a base whose weights are replaced by quantised ones, and a LoRA that makes up for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach, detach
from metalora.adapters.init import input_rows
from metalora.adapters.stored_weight import check_not_parametrized
from metalora.adapters.targets import TRANSPOSED, Target
from metalora.adapters.usable_targets import usable_targets
from metalora.config import AdapterConfig
from metalora.fitting.data_start import KINDS
from metalora.fitting.normal_float import rounded
from metalora.methods.lora import LORA
from metalora.methods.resolve import resolve

CALLER = "quantise_and_attach"
BITS = range(2, 9)
ALREADY_ROUNDED = 1e-6  # |W - Q| / |W| below this is rounding of float32


@torch.no_grad()
def quantise_and_attach(model: nn.Module, config: AdapterConfig, *, bits: int = 4, iterations: int = 1) -> Adapter:
    """Replace the weights of the targets by quantised ones, for good, and attach a LoRA that makes up for the error.

    LoftQ: Q = q(W - s A B) and s A B = the part of the r largest singular values of W - Q, in turns, starting at A B =
    0 (Algorithm 1). The base then has Q in the place of W, and the adapter starts at A B, so the model computes nearly
    what it did. q rounds to NormalFloat (NF4 for 4 bits) in blocks of 64, as bitsandbytes does. Each target keeps the
    turn with the smallest |W - Q - s A B|; the paper and PEFT keep the last, which can be worse than the first.

    The base keeps its dtype and its size in memory: its values are rounded, their storage is not. `detach` does not
    bring W back. An adapter file is refused by the base before this, so save the quantised base too, or run this again
    on a fresh base with the same settings, `detach`, and load the file. With more than one iteration, Q depends on
    singular vectors, which another machine may round differently: then save the base.

    Args:
        model: A model without an adapter. Its targets' weights are changed in place.
        config: Method "lora" or "rslora" with linear targets.
        bits: Number of bits of the quantised weights, 2 to 8.
        iterations: Number of turns, T of the paper.

    Returns:
        The adapter; its A and B are learned.

    Raises:
        ValueError: Another method or kind of layer, an `init`, a number of bits or turns out of range, a weight that
            another module has too, that is not finite, or that is quantised already. The model is unchanged.

    Example:
        >>> model = nn.Sequential(nn.Linear(32, 32))
        >>> weight = model[0].weight.clone()
        >>> adapter = quantise_and_attach(model, AdapterConfig("lora", rank=4, targets="0"))
        >>> quantised = adapter.layers["0"].base.weight
        >>> bool((weight - quantised - adapter.delta("0")).norm() < 0.9 * (weight - quantised).norm())
        True
    """
    _check_numbers(bits, iterations)
    _check_config(config)
    _check_weights(model, usable_targets(model, config)[0])
    adapter = attach(model, config)
    try:
        starts = {path: _start(adapter, path, bits, iterations) for path in adapter.targets}
    except ValueError:
        detach(model)
        raise
    for path, (quantised, a, b) in starts.items():
        _base_weight(adapter, path).copy_(quantised)
        adapter.learned[f"{path}.A"].copy_(a)
        adapter.learned[f"{path}.B"].copy_(b)
    return adapter


@dataclass(frozen=True)
class _Turn:
    """One turn of LoftQ for a weight W (out, in).

    Attributes:
        quantised: Q (out, in), in the dtype of the base.
        left: Leading left singular vectors of W - Q, (out, rank).
        singular_values: Those of W - Q, (n,), falling.
        right: Leading right singular vectors, (rank, in).
    """

    quantised: Tensor
    left: Tensor
    singular_values: Tensor
    right: Tensor

    def error(self) -> float:
        """|W - Q - s A B|."""
        return float(self.singular_values[len(self.right) :].norm())


def _turns(weight: Tensor, rank: int, bits: int, iterations: int, dtype: torch.dtype) -> Iterator[_Turn]:
    """The turns for a weight (out, in) in float64, whose base stores it in `dtype`."""
    product = torch.zeros_like(weight)
    for _ in range(iterations):
        # what the base can store, so that the adapter also makes up for the rounding to 16 bits
        quantised = rounded(weight - product, bits).to(dtype)
        u, s, v = torch.linalg.svd(weight - quantised.double(), full_matrices=False)  # (out, n), (n,), (n, in)
        turn = _Turn(quantised, u[:, :rank], s, v[:rank])
        product = (turn.left * s[:rank]) @ turn.right
        yield turn


def _start(adapter: Adapter, path: str, bits: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """The quantised weight as the base stores it, A (in, rank) and B (rank, out) of a target."""
    base, target, scale = _base_weight(adapter, path), adapter.targets[path], adapter.scale_of(path)
    if scale <= 0:
        raise ValueError(f"{CALLER}: target {path!r} has the scale {scale}, expected more than zero: set alpha")
    weight = input_rows(base, target).mT  # (out, in), the order in which bitsandbytes makes blocks
    rank = adapter.factors[f"{path}.A"].shape[-1]
    turn = min(_turns(weight, rank, bits, iterations, base.dtype), key=_Turn.error)
    if float(turn.singular_values.norm()) <= ALREADY_ROUNDED * float(weight.norm()):
        raise ValueError(f"{CALLER}: the weight of target {path!r} has {bits} bits already: there is no error to learn")
    roots = (turn.singular_values[:rank] / scale).sqrt()  # the scale multiplies A B
    stored = turn.quantised.mT if target.kind in TRANSPOSED else turn.quantised
    return stored, turn.right.mT * roots, roots[:, None] * turn.left.mT


def _base_weight(adapter: Adapter, path: str) -> Tensor:
    weight = adapter.layers[path].get_submodule("base").weight
    assert isinstance(weight, Tensor)
    return weight


def _check_numbers(bits: int, iterations: int) -> None:
    if bits not in BITS:
        raise ValueError(f"{CALLER}: bits is {bits}, expected {BITS[0]} to {BITS[-1]}")
    if iterations < 1:
        raise ValueError(f"{CALLER}: iterations is {iterations}, expected at least 1")


def _check_config(config: AdapterConfig) -> None:
    """Raise a ValueError unless the configuration is a LoRA whose A and B are learned and have no other start."""
    if config.init:
        raise ValueError(
            f"{CALLER}: init={config.init!r}, expected none: A and B start at what the quantised weight lacks"
        )
    resolved = resolve(config)
    method = resolved.method
    if (method.factors, method.mechanisms, method.replicated_over) != (LORA.factors, (), LORA.replicated_over):
        raise ValueError(f"{CALLER}: method {method.name!r}, expected 'lora' or 'rslora'")
    if resolved.generated or config.frozen:
        names = ", ".join((*resolved.generated, *config.frozen))
        raise ValueError(f"{CALLER}: {names} is generated or frozen, expected A and B to be learned")


def _check_weights(model: nn.Module, targets: Sequence[Target]) -> None:
    """Raise a ValueError unless every target is linear, and its weight finite and its own."""
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for target in targets:
        if target.kind not in KINDS:
            raise ValueError(f"{CALLER}: target {target.path!r} is a {target.kind}, expected linear layers")
        layer = model.get_submodule(target.path)
        check_not_parametrized(layer, target.path, CALLER)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if users[id(weight)] > 1:
            raise ValueError(f"{CALLER}: the weight of target {target.path!r} has another name too: exclude it")
        if not weight.isfinite().all():
            raise ValueError(f"{CALLER}: the weight of target {target.path!r} has NaN or infinite numbers")
