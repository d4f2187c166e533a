"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from metalora._util.number_range import Range
from metalora._util.plain_values import parse_json
from metalora._util.shown import shown
from metalora._util.suggest import nearest
from metalora.fitting.updates import LowRankUpdate

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the name of every tensor
BIAS = "lora_B.bias"
INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")


def read_lora(folder: str | Path) -> dict[str, LowRankUpdate]:
    """Read a LoRA folder of PEFT: Delta W = up · down at every target.

    The scale alpha / r (rsLoRA: alpha / sqrt(r)) is multiplied into `up`; `rank_pattern` and `alpha_pattern` count.
    `fan_in_fan_out` does not: it tells how the base stores its weight.

    Args:
        folder: A folder that PEFT's `save_pretrained` wrote.

    Returns:
        Module path, as in the model that PEFT wrapped -> update, with down (rank, in), (rank, in, kw) or
        (rank, in, kh, kw) and up (out, rank).

    Raises:
        ValueError: A file is missing or damaged, or the adapter is not a plain LoRA: another peft_type, DoRA, trained
            biases, an initialisation that changed the base, an embedding, or halves that do not fit.

    Warns:
        UserWarning: The folder also holds whole modules, such as a classifier; they are left out.

    Example:
        >>> import tempfile, torch
        >>> from metalora import AdapterConfig, attach
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = adapter.export_lora(folder)
        ...     update = read_lora(folder)["0"]
        >>> tuple(update.down.shape), tuple(update.up.shape)
        ((2, 8), (4, 2))
    """
    folder = Path(folder)
    config = _read_config(folder)
    halves, left_out = _read_halves(folder)
    if left_out:
        warnings.warn(f"{folder}: {len(left_out)} tensors saved whole are left out: {left_out[0]!r}", stacklevel=2)
    if not halves:
        raise ValueError(f"{folder / TENSORS}: holds no LoRA, expected names such as {PREFIX}PATH.lora_A.weight")
    return {path: _scaled_update(folder, path, pair, config) for path, pair in halves.items()}


def read_tensors(path: Path, missing: str) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.
        missing: The message of the error if the file does not exist.

    Returns:
        Name -> tensor, in the shape and the dtype of the file, on the CPU.

    Raises:
        ValueError: The file does not exist or is damaged.
    """
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(missing) from None
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or damaged ({error})") from None


def in_model(
    updates: Mapping[str, LowRankUpdate], model: nn.Module, source: str | Path = ""
) -> dict[str, LowRankUpdate]:
    """Return updates by the module paths of a model, which may contain the model of the updates or be a part of it.

    A path matches as it is, without its first components ("bert.encoder..." in a BertModel), or behind further ones.

    Args:
        updates: Module path -> update.
        model: The model to find the modules in.
        source: What the updates were read from, for error messages.

    Raises:
        ValueError: A module is not in the model, or several modules match.

    Example:
        >>> import torch
        >>> update = LowRankUpdate(torch.ones(1, 2), torch.ones(3, 1))
        >>> model = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(2, 3)})})
        >>> list(in_model({"wrapped.block.fc": update}, model))
        ['block.fc']
    """
    paths = [path for path, _ in model.named_modules()]
    placed = {}
    for path, update in updates.items():
        matches = _matching_paths(path, paths)
        if len(matches) != 1:
            problem = f"has {len(matches)} modules {path!r}" if matches else f"has no module {path!r}"
            raise ValueError(f"{source}: {type(model).__name__} {problem}{nearest(path, paths)[:300]}")
        placed[matches[0]] = update
    return placed


def _matching_paths(path: str, paths: list[str]) -> list[str]:
    """Return the longest end of a path that is a module path; otherwise the module paths that end in the path.

    The last component alone, such as "fc", does not count as an end: it says too little.
    """
    components = path.split(".")
    for start in range(max(len(components) - 1, 1)):
        end = ".".join(components[start:])
        if end in paths:
            return [end]
    return [candidate for candidate in paths if candidate.endswith(f".{path}")]


def patterned(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Return the value of the first pattern that a path ends with, as PEFT matches `rank_pattern`.

    Example:
        >>> patterned({"query": 4}, "layer.0.query", default=8), patterned({"query": 4}, "layer.0.value", default=8)
        (4, 8)
    """
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):  # PEFT's own expression
            return value
    return default


# ---- the two files --------------------------------------------------------------------------------------------------
def _read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a LoRA folder; ValueError if it is missing, damaged or not that of a plain LoRA."""
    try:
        text = (folder / CONFIG).read_text()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: no {CONFIG}, expected the folder of a PEFT LoRA") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / CONFIG}: not JSON ({error})") from None
    config = parse_json(text, str(folder / CONFIG))
    peft_type = config.get("peft_type") if isinstance(config, dict) else config
    if not isinstance(config, dict) or peft_type != "LORA":
        raise ValueError(f"{folder}: peft_type is {shown(peft_type)}, expected 'LORA'")
    _check_plain_lora(folder, config)
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{folder / CONFIG}: {key} is {shown(value)}, expected a number")
        Range(above=0).check(value, f"{folder / CONFIG}: {key}")
    return config


def _check_plain_lora(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise a ValueError for a variant of LoRA that is more than Delta W = B A."""
    if config.get("use_dora"):
        raise ValueError(f"{folder}: DoRA also rescales the columns of the weight, which is not a low-rank update")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise ValueError(f"{folder}: it has trained biases (bias={config.get('bias')!r}), which no factor can hold")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(INITS_THAT_CHANGE_THE_BASE):
        raise ValueError(
            f"{folder}: init_lora_weights={init!r} changed the base's weights; save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )


def _read_halves(folder: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return module path -> {"A": (rank, in, ...), "B": (out, rank, ...)}, and the names of all other tensors."""
    tensors = read_tensors(folder / TENSORS, f"{folder}: no {TENSORS} (PEFT's older .bin files are not read)")
    halves: dict[str, dict[str, Tensor]] = {}
    left_out = []
    for name, value in tensors.items():
        if "lora_embedding" in name:
            raise ValueError(f"{folder}: {name!r} is the LoRA of an embedding, which is not converted")
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name.removeprefix(PREFIX))
        if match:
            path, half = match.groups()
            halves.setdefault(path, {})[half] = value
        elif "lora_" in name:
            raise ValueError(f"{folder}: {name!r} is not a half of a plain LoRA (lora_A.weight, lora_B.weight)")
        else:
            left_out.append(name)
    return halves, left_out


def _scaled_update(folder: Path, path: str, halves: Mapping[str, Tensor], config: Mapping[str, Any]) -> LowRankUpdate:
    """Return the update of a target with its scale in `up`; ValueError if its halves do not fit."""
    if len(halves) != 2:
        raise ValueError(f"{folder}: {path!r} has lora_{next(iter(halves))} alone, expected A and B")
    down, up = halves["A"].float(), halves["B"].float()  # (rank, in, *kernel) and (out, rank, 1..)
    rank = patterned(config.get("rank_pattern"), path, config["r"])
    alpha = patterned(config.get("alpha_pattern"), path, config["lora_alpha"])
    is_pair = down.ndim in (2, 3, 4) and up.ndim == down.ndim and up.shape[1] == len(down)  # linear, conv1d, conv2d
    if not is_pair or up[0, 0].numel() != 1 or len(down) != rank:
        raise ValueError(
            f"{folder}: {path!r} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, expected ({rank}, in) "
            f"and (out, {rank}), or those of a convolution"
        )
    divisor = sqrt(rank) if config.get("use_rslora") else rank
    return LowRankUpdate(down, up.flatten(1) * (alpha / divisor))
