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

PREFIXES = ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te_", "lycoris_", "lora_")
SUFFIXES = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha")


def load_lora(model: nn.Module, path: str | Path) -> Adapter:
    """Attach the LoRA of a PEFT folder or a LoCon file as method `lora`, exactly: scales are in the factors.

    Targets may have unequal ranks. ValueError: what is not there, what `read_lora` and `read_locon` refuse, shapes that
    do not fit; nothing is changed.
    """
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file or folder")
    pairs = read_locon(path, model) if Path(path).is_file() else in_model(read_lora(path), model, path)
    ranks = {target: len(pair.down) for target, pair in pairs.items()}
    largest = max(ranks.values())
    config = AdapterConfig(
        method="lora",
        rank=largest,
        rank_pattern={target: rank for target, rank in ranks.items() if rank != largest},
        targets=tuple(pairs),
    )
    _check(model, pairs, path)
    adapter = attach(model, config)
    factors = adapter.learned
    with torch.no_grad():
        for target, pair in pairs.items():
            factors[f"{target}.A"].copy_(pair.down.movedim((0, 1), (-1, -2)))  # (r, in, kh, kw) -> (kh, kw, in, r)
            factors[f"{target}.B"].copy_(pair.up.mT)
    return adapter


def _check(model: nn.Module, pairs: Mapping[str, LowRankUpdate], path: str | Path) -> None:
    """ValueError for a pair that is no update of its module's weight."""
    for target, pair in pairs.items():
        weight = getattr(model.get_submodule(target), "weight", None)
        stored = () if weight is None else tuple(weight.shape)
        turned = type(model.get_submodule(target)).__name__ == "Conv1D"  # GPT-2's stores (in, out)
        shape = (len(pair.up), *pair.down.shape[1:])
        if stored != (shape[::-1] if turned else shape):
            raise ValueError(f"{path}: {target!r} has an update for a weight of {shape}, the model's is {stored}")


def read_locon(path: str | Path, model: nn.Module) -> dict[str, LowRankUpdate]:
    """Module path -> update of a file with lora_down, lora_up and alpha by flattened names (lora_unet_mid_block_...).

    A Tucker core (lora_mid) is folded into down. ValueError: a missing or damaged file, a name that is no module of the
    model, or several, another algorithm (LoHa, LoKr, DoRA), a pair that is not whole.
    """
    tensors = read_tensors(Path(path), f"{path}: no such file")
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        module, _, kind = name.partition(".")
        if kind not in SUFFIXES:
            raise ValueError(f"{path}: {name!r} is no part of a LoCon ({', '.join(SUFFIXES)})")
        groups.setdefault(module, {})[kind] = value.float()
    if not groups:
        raise ValueError(f"{path}: holds no LoRA")
    flat: dict[str, list[str]] = {}
    for own, _ in model.named_modules():
        flat.setdefault(own.replace(".", "_"), []).append(own)
    return {_module(name, flat, path): _pair(name, group, path) for name, group in groups.items()}


def _module(name: str, flat: Mapping[str, list[str]], path: str | Path) -> str:
    short = re.sub(f"^({'|'.join(PREFIXES)})", "", name)
    found = flat.get(short) or [own for key, every in flat.items() if key.endswith(f"_{short}") for own in every]
    if len(found) != 1:
        what = f"names {len(found)} modules: {', '.join(found)}" if found else f"names no module{nearest(short, flat)}"
        raise ValueError(f"{path}: {name!r} {what[:300]}")
    return found[0]


def _pair(name: str, group: Mapping[str, Tensor], path: str | Path) -> LowRankUpdate:
    down, up, mid = (group.get(f"lora_{part}.weight") for part in ("down", "up", "mid"))
    if down is None or up is None:
        raise ValueError(f"{path}: {name!r} has lora_{'up' if down is None else 'down'} alone, expected both")
    rank = up.shape[1]
    scale = float(group["alpha"]) / rank if "alpha" in group else 1.0
    if mid is not None:
        down = torch.einsum("ab...,bi->ai...", mid, down.flatten(1))
    if len(down) != rank or up[0, 0].numel() != 1:
        raise ValueError(f"{path}: {name!r} has lora_down {tuple(down.shape)} and lora_up {tuple(up.shape)}")
    return LowRankUpdate(down, up.flatten(1) * scale)
