"""Files of kohya's scripts and of LyCORIS: flattened module names, and one group of tensors for every module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from metalora._util.shown import cut, shown
from metalora._util.suggest import nearest
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.format import check_numbers, check_shape, read_tensors
from metalora.io.lora.lycoris import SUFFIXES, update_of

PREFIXES = ("lora_unet", "lora_te1", "lora_te2", "lora_te", "lycoris", "lora")
"""What stands before the flattened path of a module; "lora" begins others and is the last."""


def flat_name(path: str, prefix: str) -> str:
    """Return the name of a module in a file.

    Example:
        >>> flat_name("mid_block.attentions.0", "lora_unet")
        'lora_unet_mid_block_attentions_0'
    """
    return f"{prefix}_{path.replace('.', '_')}"


def read_kohya(path: str | Path, model: nn.Module) -> dict[str, LowRankUpdate]:
    """Read a file of kohya or LyCORIS: LoRA and LoCon, LoHa and LoKr, by flattened names (lora_unet_mid_block_...).

    The scale alpha / rank is multiplied into `up`, a Tucker core into `down`. Of rank R, LoHa becomes an update of rank
    R^2, LoKr one of rank R times the smaller side of its first factor, both at most of the smaller side of the weight;
    exactly.

    Args:
        path: A safetensors file.
        model: The base model, whose module paths the flattened names stand for.

    Returns:
        Module path -> update, with down (rank, in) or (rank, in, kh, kw) and up (out, rank).

    Raises:
        ValueError: The file is missing or damaged, a number is not finite, a name stands for no module or for several,
            two names for one, or a module's tensors are of another algorithm (DoRA, OFT, ...), do not fit together, or
            not to the module.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> model = nn.ModuleDict({"mid": nn.ModuleDict({"conv": nn.Conv2d(6, 5, 3)})})
        >>> tensors = {
        ...     "lora_unet_mid_conv.lora_down.weight": torch.ones(2, 6, 3, 3),
        ...     "lora_unet_mid_conv.lora_up.weight": torch.ones(5, 2, 1, 1),
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(tensors, f"{folder}/locon.safetensors")
        ...     updates = read_kohya(f"{folder}/locon.safetensors", model)
        >>> {path: tuple(update.down.shape) for path, update in updates.items()}
        {'mid.conv': (2, 6, 3, 3)}
    """
    tensors = read_tensors(Path(path), f"{path}: no such file")
    check_numbers(tensors, path)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        module_name, _, suffix = name.partition(".")
        if suffix not in SUFFIXES:
            raise ValueError(f"{path}: {shown(name)} is not a part of a LoCon, LoHa or LoKr ({', '.join(SUFFIXES)})")
        groups.setdefault(module_name, {})[suffix] = value.float()
    if not groups:
        raise ValueError(f"{path}: holds no LoRA")
    paths_by_flat_name: dict[str, list[str]] = {}
    for module_path, _ in model.named_modules():
        paths_by_flat_name.setdefault(module_path.replace(".", "_"), []).append(module_path)
    updates: dict[str, LowRankUpdate] = {}
    for name, group in groups.items():
        module_path = _module_path(name, paths_by_flat_name, path)
        if module_path in updates:
            raise ValueError(f"{path}: two updates of module {module_path!r}, the second by the name {shown(name)}")
        updates[module_path] = _update(group, model, module_path, f"{path}: {shown(name)}")
    return updates


def _update(group: Mapping[str, Tensor], model: nn.Module, module_path: str, place: str) -> LowRankUpdate:
    """Return the update of a module; ValueError if its tensors do not fit together, or not to the module."""
    module = model.get_submodule(module_path)
    kernel = tuple(module.kernel_size) if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else ()
    # First with the shapes alone: small factors may stand for a product that no memory holds.
    shapes = {suffix: value if suffix == "alpha" else value.to("meta") for suffix, value in group.items()}
    try:
        check_shape(module, module_path, update_of(shapes, kernel), place)
        update = update_of(group, kernel)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(place) else f"{place} {error}") from None
    except (RuntimeError, IndexError, TypeError) as error:  # axes that torch cannot multiply
        raise ValueError(f"{place} has tensors that do not fit together ({cut(str(error))})") from None
    if not all(half.isfinite().all() for half in update):
        raise ValueError(f"{place} has a product, or a product with its scale, that is not finite")
    return update


def _module_path(name: str, paths_by_flat_name: Mapping[str, list[str]], path: str | Path) -> str:
    """Return the module path that a flattened name stands for, whole or as the end of a path."""
    flat = re.sub(f"^({'|'.join(PREFIXES)})_", "", name)
    matches = paths_by_flat_name.get(flat, [])
    if not matches:
        for candidate, paths in paths_by_flat_name.items():
            if candidate.endswith(f"_{flat}"):
                matches = [*matches, *paths]
    if not matches:
        problem = f"names no module{nearest(flat, paths_by_flat_name)}"
        raise ValueError(f"{path}: {shown(name)} {problem[:300]}")
    if len(matches) > 1:
        problem = f"names {len(matches)} modules: {', '.join(matches)}"
        raise ValueError(f"{path}: {shown(name)} {problem[:300]}")
    return matches[0]
