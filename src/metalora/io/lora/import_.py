"""Trained LoRAs as adapters of this library: folders of PEFT, and files of kohya's scripts and LyCORIS."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.adapters.attach import attach
from metalora.adapters.held_matrix import held_matrix, required_base
from metalora.config import AdapterConfig
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.format import check_shape, in_model, read_lora
from metalora.io.lora.kohya import read_kohya
from metalora.tensornet.truncation.truncated_svd import truncated_svd


def load_lora(model: nn.Module, path: str | Path) -> Adapter:
    """Attach a trained LoRA to a model as an adapter of method "lora", exactly.

    The scale of the LoRA is multiplied into the factors. Targets may have unequal ranks.

    Args:
        model: The base model of the LoRA, or a part of it, without an adapter.
        path: A folder of PEFT, or a file of kohya or LyCORIS (LoCon, LoHa, LoKr).

    Returns:
        The adapter.

    Raises:
        ValueError: The path does not exist, the LoRA is not readable (see `read_lora` and `read_kohya`), or its shapes
            do not fit the model. The model is unchanged.

    Example:
        >>> import copy, tempfile
        >>> base = nn.Sequential(nn.Linear(8, 4))
        >>> model = copy.deepcopy(base)
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> _ = adapter.factors["0.B"].data.fill_(0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = adapter.export_lora(folder)
        ...     imported = load_lora(base, folder)
        >>> x = torch.ones(1, 8)
        >>> torch.allclose(base(x), model(x))
        True
    """
    updates = read_any_lora(model, path)
    check_shapes(model, updates, path)
    return attach_updates(model, updates)


def read_any_lora(model: nn.Module, path: str | Path) -> dict[str, LowRankUpdate]:
    """Read a trained LoRA by the module paths of its base; see `load_lora`."""
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file or folder")
    return read_kohya(path, model) if Path(path).is_file() else in_model(read_lora(path, model), model, path)


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
    ranks = {target: len(update.down) for target, update in updates.items()}
    largest = max(ranks.values())
    config = AdapterConfig(
        method="lora",
        rank=largest,
        rank_pattern={target: rank for target, rank in ranks.items() if rank != largest},
        targets=_patterns(model, updates),
    )
    with unchanged_on_error(model):
        adapter = attach(model, config)
        set_factors(adapter, updates)
    return adapter


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


def _within_full_rank(update: LowRankUpdate) -> LowRankUpdate:
    """Return an update whose rank is not above the smaller side of its weight."""
    product = truncated_svd(update.down, update.up.mT, min(len(update.up), update.down[0].numel()))
    return LowRankUpdate(product.left, product.right.mT)


def check_shapes(model: nn.Module, updates: Mapping[str, LowRankUpdate], path: str | Path) -> None:
    """Raise a ValueError for an update that has not the shape of its module's weight."""
    for target, update in updates.items():
        check_shape(required_base(model, target), target, update, path)
