"""Updates of trained LoRAs as adapters: plain ones, DoRA, and those whose base has lost a part (PiSSA, OLoRA)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.adapters.attach import attach
from metalora.adapters.held_matrix import held_matrix, required_base
from metalora.adapters.init import input_rows
from metalora.config import AdapterConfig
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.trained_lora import TrainedLora
from metalora.tensornet.truncation.truncated_svd import truncated_svd


def attach_updates(model: nn.Module, updates: Mapping[str, LowRankUpdate]) -> Adapter:
    """Attach updates as an adapter of method "lora", exactly.

    Args:
        model: The base model, without an adapter.
        updates: Module path -> update of the shape of the module's weight. Targets may have unequal ranks; a rank
            above the smaller side of a weight becomes that side, by an SVD that loses nothing.

    Returns:
        The adapter.

    Raises:
        ValueError: A module cannot be adapted, or the model has an adapter.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach_updates(model, {"0": LowRankUpdate(down=torch.ones(1, 8), up=torch.ones(4, 1))})
        >>> adapter.delta("0").sum().item()
        32.0
    """
    updates = {target: _within_full_rank(update) for target, update in updates.items()}
    with unchanged_on_error(model):
        adapter = attach(model, _config(model, "lora", updates))
        set_factors(adapter, updates)
    return adapter


@torch.no_grad()
def set_factors(adapter: Adapter, updates: Mapping[str, LowRankUpdate]) -> None:
    """Copy updates into the factors of an adapter of method "lora" that has their ranks.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=1, targets=("0",)))
        >>> set_factors(adapter, {"0": LowRankUpdate(down=torch.ones(1, 8), up=torch.ones(4, 1))})
        >>> adapter.delta("0").sum().item()
        32.0
    """
    factors = adapter.learned
    for target, update in updates.items():
        a = factors[f"{target}.A"]
        a.copy_(update.down.movedim((0, 1), (-1, -2)).reshape(a.shape))  # (r, in, kh, kw) -> (kh, kw, in, r)
        factors[f"{target}.B"].copy_(update.up.mT)  # (out, r) -> (r, out)


@torch.no_grad()
def attach_dora(model: nn.Module, updates: Mapping[str, LowRankUpdate], magnitudes: Mapping[str, Tensor]) -> Adapter:
    """Attach a trained DoRA as an adapter of method "dora".

    Args:
        model: The base model, without an adapter.
        updates: Module path -> up · down, with the scale in `up`.
        magnitudes: Module path -> the norms (out,) of the rows of the adapted weight.

    Returns:
        The adapter.

    Raises:
        ValueError: A module cannot be adapted, or the model has an adapter.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> update = LowRankUpdate(down=torch.zeros(1, 8), up=torch.zeros(4, 1))
        >>> adapter = attach_dora(model, {"0": update}, {"0": 2 * model[0].weight.norm(dim=1)})
        >>> torch.allclose(adapter.delta("0"), adapter.layers["0"].base.weight)  # every output counts twice
        True
    """
    updates = {target: _within_full_rank(update) for target, update in updates.items()}
    with unchanged_on_error(model):
        adapter = attach(model, _config(model, "dora", updates))
        set_factors(adapter, updates)
        set_magnitudes(adapter, magnitudes)
    return adapter


@torch.no_grad()
def set_magnitudes(adapter: Adapter, magnitudes: Mapping[str, Tensor]) -> None:
    """Copy magnitudes into the factors of an adapter of method "dora", which learns their changes.

    Args:
        adapter: The adapter.
        magnitudes: Module path -> the norms (out,) of the rows of the adapted weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("dora", rank=1, targets=("0",)))
        >>> set_magnitudes(adapter, {"0": adapter.layers["0"].base.weight.norm(dim=1) + 1})
        >>> torch.allclose(adapter.factors["0.d"], torch.ones(4))
        True
    """
    for path, magnitude in magnitudes.items():
        base: Any = adapter.layers[path].base
        norms = torch.linalg.vector_norm(input_rows(base.weight, adapter.targets[path]), dim=0)  # (out,)
        adapter.learned[f"{path}.d"].copy_(magnitude.double().cpu() - norms)


@torch.no_grad()
def attach_started(model: nn.Module, trained: TrainedLora) -> Adapter:
    """Attach a LoRA that was saved with its own factors although the base had lost their start: PiSSA or OLoRA.

    Args:
        model: The base model as it was before the training, without an adapter.
        trained: The LoRA.

    Returns:
        The adapter, of method "pissa" or "olora": Delta W = s (A B - A_0 B_0), A_0 and B_0 computed from the base.

    Raises:
        ValueError: A target is no linear layer, a module cannot be adapted, or the model has an adapter.
    """
    for path in trained.updates:
        module = required_base(model, path)
        # PEFT decomposes the stored weight of the others in another order of its axes, or not at all.
        if not (isinstance(module, nn.Linear) or (trained.start == "pissa" and type(module).__name__ == "Conv1D")):
            raise ValueError(f"{trained.file}: {path!r} is a {type(module).__name__} with a start of {trained.start}")
    # What PiSSA subtracts is free of the scale; OLoRA subtracts s Q R, so its scale stays a scale.
    scales = trained.scales if trained.start == "olora" else dict.fromkeys(trained.updates, 1.0)
    updates = {path: LowRankUpdate(update.down, update.up / scales[path]) for path, update in trained.updates.items()}
    alphas = {path: scales[path] * len(update.down) for path, update in updates.items()}
    with unchanged_on_error(model):
        adapter = attach(model, _config(model, trained.start, updates, alpha=1.0, alpha_pattern=alphas))
        set_factors(adapter, updates)
        for path in updates:
            for factor in ("A", "B"):  # the adapter learns the changes of the start
                adapter.learned[f"{path}.{factor}"].sub_(adapter.factors[f"{path}.{factor}_0"])
    return adapter


def _config(model: nn.Module, method: str, updates: Mapping[str, LowRankUpdate], **fields: Any) -> AdapterConfig:
    """Return the configuration of a method on the targets of updates, with their ranks."""
    ranks = {target: len(update.down) for target, update in updates.items()}
    largest = max(ranks.values())
    return AdapterConfig(
        method=method,
        rank=largest,
        rank_pattern={target: rank for target, rank in ranks.items() if rank != largest},
        targets=_patterns(model, updates),
        **fields,
    )


def _patterns(model: nn.Module, paths: Collection[str]) -> tuple[str, ...]:
    """Return paths of targets, with one path for all matrices of a stack: it may have thousands."""
    patterns: dict[str, None] = {}  # a set that keeps its order
    for path in paths:
        matrix = held_matrix(model, path)
        parameter = path.rpartition(".")[0]
        is_whole = (
            matrix is not None
            and matrix.index is not None
            and all(f"{parameter}.{index}" in paths for index in range(len(matrix.parameter)))
        )
        patterns[parameter if is_whole else path] = None
    return tuple(patterns)


def _within_full_rank(update: LowRankUpdate) -> LowRankUpdate:
    """Return an update whose rank is not above the smaller side of its weight."""
    product = truncated_svd(update.down, update.up.mT, min(len(update.up), update.down[0].numel()))
    return LowRankUpdate(product.left, product.right.mT)
