"""Trained LoRAs as adapters of this library: folders of PEFT, and LoCon files of kohya's scripts and LyCORIS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach
from metalora.config import AdapterConfig
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.format import in_model, read_lora, read_tensors
from metalora.tensornet.truncation.truncated_svd import truncated_svd

PREFIXES = ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_", "lycoris_", "lora_")
SUFFIXES = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")


def load_lora(model: nn.Module, path: str | Path) -> Adapter:
    """Attach a trained LoRA to a model as an adapter of method "lora", exactly.

    The scale of the LoRA is multiplied into the factors. Targets may have unequal ranks.

    Args:
        model: The base model of the LoRA, or a part of it, without an adapter.
        path: A folder of PEFT, or a LoCon file.

    Returns:
        The adapter.

    Raises:
        ValueError: The path does not exist, the LoRA is not readable (see `read_lora` and `read_locon`), or its shapes
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
    return read_locon(path, model) if Path(path).is_file() else in_model(read_lora(path), model, path)


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
        targets=tuple(updates),
    )
    adapter = attach(model, config)
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
        factors[f"{target}.A"].copy_(update.down.movedim((0, 1), (-1, -2)))  # (r, in, kh, kw) -> (kh, kw, in, r)
        factors[f"{target}.B"].copy_(update.up.mT)  # (out, r) -> (r, out)


def _within_full_rank(update: LowRankUpdate) -> LowRankUpdate:
    """Return an update whose rank is not above the smaller side of its weight."""
    product = truncated_svd(update.down, update.up.mT, min(len(update.up), update.down[0].numel()))
    return LowRankUpdate(product.left, product.right.mT)


def check_shapes(model: nn.Module, updates: Mapping[str, LowRankUpdate], path: str | Path) -> None:
    """Raise a ValueError for an update that has not the shape of its module's weight."""
    for target, update in updates.items():
        module = model.get_submodule(target)
        weight = getattr(module, "weight", None)
        stored = () if weight is None else tuple(weight.shape)
        shape = (len(update.up), *update.down.shape[1:])
        # the linear layer of GPT-2 and an embedding store (in, out)
        is_transposed = type(module).__name__ == "Conv1D" or isinstance(module, nn.Embedding)
        if stored != (shape[::-1] if is_transposed else shape):
            raise ValueError(f"{path}: {target!r} has an update for a weight of {shape}, the model's is {stored}")


def read_locon(path: str | Path, model: nn.Module) -> dict[str, LowRankUpdate]:
    """Read a LoCon file: lora_down, lora_up and alpha by flattened module names (lora_unet_mid_block_...).

    A Tucker core (lora_mid) is multiplied into `down`, the scale alpha / rank into `up`.

    Args:
        path: A safetensors file of kohya's scripts or of LyCORIS.
        model: The base model, whose module paths the flattened names stand for.

    Returns:
        Module path -> update, with down (rank, in) or (rank, in, kh, kw) and up (out, rank).

    Raises:
        ValueError: The file is missing or damaged, a name stands for no module or for several, the file holds another
            algorithm (LoHa, LoKr, DoRA), or a module lacks one half.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> model = nn.ModuleDict({"mid": nn.ModuleDict({"conv": nn.Conv2d(6, 5, 3)})})
        >>> tensors = {
        ...     "lora_unet_mid_conv.lora_down.weight": torch.ones(2, 6, 3, 3),
        ...     "lora_unet_mid_conv.lora_up.weight": torch.ones(5, 2, 1, 1),
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(tensors, f"{folder}/locon.safetensors")
        ...     updates = read_locon(f"{folder}/locon.safetensors", model)
        >>> {path: tuple(update.down.shape) for path, update in updates.items()}
        {'mid.conv': (2, 6, 3, 3)}
    """
    tensors = read_tensors(Path(path), f"{path}: no such file")
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        module_name, _, suffix = name.partition(".")
        if suffix not in SUFFIXES:
            raise ValueError(f"{path}: {name!r} is not a part of a LoCon ({', '.join(SUFFIXES)})")
        groups.setdefault(module_name, {})[suffix] = value.float()
    if not groups:
        raise ValueError(f"{path}: holds no LoRA")
    paths_by_flat_name: dict[str, list[str]] = {}
    for module_path, _ in model.named_modules():
        paths_by_flat_name.setdefault(module_path.replace(".", "_"), []).append(module_path)
    updates = {}
    for name, group in groups.items():
        module_path = _module_path(name, paths_by_flat_name, path)
        updates[module_path] = _scaled_update(name, group, path)
    return updates


def _module_path(name: str, paths_by_flat_name: Mapping[str, list[str]], path: str | Path) -> str:
    """Return the module path that a flattened name stands for, whole or as the end of a path."""
    flat_name = re.sub(f"^({'|'.join(PREFIXES)})", "", name)  # "lora_" begins other prefixes and is the last
    matches = paths_by_flat_name.get(flat_name, [])
    if not matches:
        for candidate, paths in paths_by_flat_name.items():
            if candidate.endswith(f"_{flat_name}"):
                matches = [*matches, *paths]
    if not matches:
        problem = f"names no module{nearest(flat_name, paths_by_flat_name)}"
        raise ValueError(f"{path}: {name!r} {problem[:300]}")
    if len(matches) > 1:
        problem = f"names {len(matches)} modules: {', '.join(matches)}"
        raise ValueError(f"{path}: {name!r} {problem[:300]}")
    return matches[0]


def _scaled_update(name: str, group: Mapping[str, Tensor], path: str | Path) -> LowRankUpdate:
    """Return the update of a module with its scale in `up`; ValueError if its tensors do not fit."""
    down, up, mid = (group.get(f"lora_{part}.weight") for part in ("down", "up", "mid"))
    if down is None or up is None:
        raise ValueError(f"{path}: {name!r} has lora_{'up' if down is None else 'down'} alone, expected both")
    rank = up.shape[1]
    scale = float(group["alpha"]) / rank if "alpha" in group else 1.0  # LyCORIS: without alpha, alpha is the rank
    if mid is not None:  # core (rank, rank, kh, kw) and down (rank, in, 1, 1) -> (rank, in, kh, kw)
        down = torch.einsum("ab...,bi->ai...", mid, down.flatten(1))
    if len(down) != rank or up[0, 0].numel() != 1:
        raise ValueError(f"{path}: {name!r} has lora_down {tuple(down.shape)} and lora_up {tuple(up.shape)}")
    return LowRankUpdate(down, up.flatten(1) * scale)
