"""Reading LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.fitting.updates import LowRankUpdate

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
REWRITES = ("pissa", "olora", "corda", "loftq")  # initialisations that change the base's weights


def read_lora(folder: str | Path) -> dict[str, LowRankUpdate]:
    """Module path -> LowRankUpdate with up scaled by alpha / r, or alpha / sqrt(r) of rsLoRA: Delta W = up · down.

    down (r, in), (r, in, kw) or (r, in, kh, kw), up (out, r); paths as in the model that PEFT wrapped. rank_pattern and
    alpha_pattern count; fan_in_fan_out does not, as it says how the base stores its weight.
    ValueError: a missing or damaged file, another peft_type, DoRA, biases, a base changed by the initialisation, an
    embedding, halves that do not fit. Modules saved whole (a classifier) are left out with a warning.
    """
    folder = Path(folder)
    config = _config(folder)
    halves, left_out = _halves(folder, config)
    if left_out:
        warnings.warn(f"{folder}: {len(left_out)} tensors saved whole are left out: {left_out[0]!r}", stacklevel=2)
    if not halves:
        raise ValueError(f"{folder / TENSORS}: holds no LoRA, expected names such as {PREFIX}PATH.lora_A.weight")
    return {path: _pair(folder, path, pair, config) for path, pair in halves.items()}


def read_tensors(path: Path, missing: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError: `missing` if it is not there, or that it is damaged."""
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(missing) from None
    except SafetensorError as error:
        raise ValueError(f"{path}: truncated or damaged ({error})") from None


def in_model(pairs: Mapping[str, LowRankUpdate], model: nn.Module, where: str | Path = "") -> dict[str, LowRankUpdate]:
    """The pairs by the paths of `model`, which may be a part of the model that was wrapped, or hold it.

    A path is found whole, without its first components ("bert.encoder..." in a BertModel), or behind others.
    ValueError: a module that is not there, or more than once.
    """
    paths = [path for path, _ in model.named_modules()]
    found = {}
    for path, pair in pairs.items():
        parts = path.split(".")
        ends = [".".join(parts[k:]) for k in range(max(len(parts) - 1, 1))]
        inner = [end for end in ends if end in paths][:1]
        matched = inner or [one for one in paths if one.endswith(f".{path}")]
        if len(matched) != 1:
            what = f"has {len(matched)} modules {path!r}" if matched else f"has no module {path!r}"
            raise ValueError(f"{where}: {type(model).__name__} {what}{nearest(path, paths)[:300]}")
        found[matched[0]] = pair
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: no {CONFIG}, expected the folder of a PEFT LoRA") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG}: not JSON ({error})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise ValueError(f"{folder}: peft_type is {kind!r}, expected 'LORA'")
    if config.get("use_dora"):
        raise ValueError(f"{folder}: DoRA also rescales the weight's columns, which is no low-rank update")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        raise ValueError(f"{folder}: it has trained biases (bias={config.get('bias')!r}), which no factor can hold")
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(REWRITES):
        raise ValueError(
            f"{folder}: init_lora_weights={init!r} changed the base's weights; save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it a plain LoRA"
        )
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            raise ValueError(f"{folder / CONFIG}: {key} is {config.get(key)!r}, expected a number above 0")
    return config


def _halves(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Path -> {"A": ..., "B": ...}, and the names of what is no LoRA."""
    tensors = read_tensors(folder / TENSORS, f"{folder}: no {TENSORS} (PEFT's older .bin files are not read)")
    halves: dict[str, dict[str, Tensor]] = {}
    left_out = []
    for name, value in tensors.items():
        if "lora_embedding" in name:
            raise ValueError(f"{folder}: {name!r} is the LoRA of an embedding, which is not converted")
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name.removeprefix(PREFIX))
        if match:
            halves.setdefault(match[1], {})[match[2]] = value
        elif "lora_" in name:
            raise ValueError(f"{folder}: {name!r} is no half of a plain LoRA (lora_A.weight, lora_B.weight)")
        else:
            left_out.append(name)
    return halves, left_out


def _pair(folder: Path, path: str, halves: Mapping[str, Tensor], config: Mapping[str, Any]) -> LowRankUpdate:
    if len(halves) != 2:
        raise ValueError(f"{folder}: {path!r} has lora_{next(iter(halves))} alone, expected A and B")
    down, up = halves["A"].float(), halves["B"].float()
    rank = patterned(config.get("rank_pattern"), path, config["r"])
    alpha = patterned(config.get("alpha_pattern"), path, config["lora_alpha"])
    fits = down.ndim in (2, 3, 4) and up.ndim == down.ndim and up.shape[1] == len(down) and up[0, 0].numel() == 1
    if not fits or len(down) != rank:
        raise ValueError(
            f"{folder}: {path!r} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, expected ({rank}, in) "
            f"and (out, {rank}), or those of a convolution"
        )
    return LowRankUpdate(down, up.flatten(1) * (alpha / (sqrt(rank) if config.get("use_rslora") else rank)))


def patterned(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that a path ends with, as PEFT matches them."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path))
    return next(found, default)
