"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from metalora._util.patterns import check_patterns
from metalora._util.reading import read_regular
from metalora._util.shown import cut, shown
from metalora._util.suggest import nearest
from metalora.adapters.held_matrix import HeldMatrix, base_at
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.parameters import OF_OUT_PROJ, PeftPlace, places_in_folder, unstack_halves
from metalora.io.lora.peft_config import CONFIG, read_config

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of the name of every tensor
BIAS = "lora_B.bias"
AS_PEFT_MATCHES = r"(.*\.)?({})$"  # PEFT's own expression around a pattern


def read_lora(folder: str | Path, model: nn.Module | None = None) -> dict[str, LowRankUpdate]:
    """Read a LoRA folder of PEFT: Delta W = up · down at every target.

    The scale alpha / r (rsLoRA: alpha / sqrt(r)) is multiplied into `up`; `rank_pattern` and `alpha_pattern` count.
    `fan_in_fan_out` does not: it tells how the base stores its weight.

    Args:
        folder: A folder that PEFT's `save_pretrained` wrote.
        model: The base model, without an adapter. A LoRA of parameters (`target_parameters`) or of an
            nn.MultiheadAttention is only read with it, since the folder does not say which matrices these are.

    Returns:
        Path of a module or matrix, as in the model that PEFT wrapped -> update, with down (rank, in), (rank, in, kw) or
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
    config = read_config(folder)
    halves, left_out = _read_halves(folder)
    parameters = config.get("target_parameters") or []
    if not (isinstance(parameters, list) and all(isinstance(name, str) for name in parameters)):
        raise ValueError(f"{folder / CONFIG}: target_parameters is {shown(parameters)}, expected a list of names")
    if model is None and parameters:
        raise ValueError(f"{folder / CONFIG}: target_parameters are of modules that only the base model has; load it")
    places = {} if model is None else places_in_folder(model, parameters, halves)
    if left_out:
        warnings.warn(f"{folder}: {len(left_out)} tensors saved whole are left out: {left_out[0]!r}", stacklevel=2)
    if not halves:
        raise ValueError(f"{folder / TENSORS}: holds no LoRA, expected names such as {PREFIX}PATH.lora_A.weight")
    keys = [places[name].key if name in places else name for name in halves]
    ranks, alphas = (
        by_path(config.get(key), keys, f"{folder / CONFIG}: {key}") for key in ("rank_pattern", "alpha_pattern")
    )
    updates = {}
    for (name, pair), key in zip(halves.items(), keys, strict=True):
        rank, alpha = ranks.get(key, config["r"]), alphas.get(key, config["lora_alpha"])
        divisor = sqrt(rank) if config.get("use_rslora") else rank
        for path, matrix_pair in _pairs_of_matrices(name, pair, places.get(name)).items():
            updates[path] = _scaled_update(folder / TENSORS, path, matrix_pair, rank, alpha / divisor)
    return _without_out_proj(updates, places, folder / TENSORS)


def _without_out_proj(
    updates: Mapping[str, LowRankUpdate], places: Mapping[str, PeftPlace], file: Path
) -> dict[str, LowRankUpdate]:
    """Return updates without those of out_proj of an nn.MultiheadAttention; ValueError unless these are zero.

    PEFT adds them twice in some versions, so that the file does not say what its author saw.
    """
    outputs = [place.path for name, place in places.items() if place.key == name.removesuffix(OF_OUT_PROJ) != name]
    for path in outputs:
        if updates[path].up.any() and updates[path].down.any():
            raise ValueError(
                f"{file}: {path!r} is the output of an nn.MultiheadAttention, whose update PEFT adds twice (0.21.2) or "
                "once, by its version: merge it with the PEFT that has trained it"
            )
    return {path: update for path, update in updates.items() if path not in outputs}


def _pairs_of_matrices(
    name: str, halves: Mapping[str, Tensor], place: PeftPlace | None
) -> dict[str, Mapping[str, Tensor]]:
    """Return path of the target -> its halves, of a layer, of a matrix or of all matrices of a stack."""
    if place is None or place.count is None:
        return {name if place is None else place.path: halves}
    return {f"{place.path}.{index}": pair for index, pair in enumerate(unstack_halves(halves, place.count))}


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
        tensors: dict[str, Tensor] = load_tensors(read_regular(path))
    except FileNotFoundError:
        raise ValueError(missing) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    # A type that torch does not have is a KeyError, a shape that it cannot have a RuntimeError.
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: truncated or damaged ({cut(' '.join(str(error).split()))})") from None
    return tensors


def check_numbers(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError unless all tensors of a file hold finite floating-point numbers.

    Example:
        >>> import torch
        >>> check_numbers({"lora_A": torch.tensor([float("nan")])}, "lora.safetensors")
        Traceback (most recent call last):
        ValueError: lora.safetensors: 'lora_A' has numbers that are not finite
    """
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{path}: {shown(name)} is of {value.dtype}, expected floating-point numbers")
        if not value.float().isfinite().all():  # `float` also for the types of 8 bits, which have no `isfinite`
            raise ValueError(f"{path}: {shown(name)} has numbers that are not finite")


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
    paths = {path: None for path, _ in model.named_modules()}  # a set that keeps its order
    placed: dict[str, LowRankUpdate] = {}
    for path, update in updates.items():
        matches = [path] if base_at(model, path) is not None else _matching_paths(path, paths)
        if len(matches) != 1:
            problem = f"has {len(matches)} modules {shown(path)}" if matches else f"has no module {shown(path)}"
            raise ValueError(f"{source}: {type(model).__name__} {problem}{nearest(path, paths)[:300]}")
        if matches[0] in placed:
            raise ValueError(f"{source}: two updates of module {matches[0]!r}, the second by the name {shown(path)}")
        placed[matches[0]] = update
    return placed


def _matching_paths(path: str, paths: Collection[str]) -> list[str]:
    """Return the longest end of a path that is a module path; otherwise the module paths that end in the path.

    The last component alone, such as "fc", does not count as an end: it says too little.
    """
    components = path.split(".")
    longest = max(module_path.count(".") for module_path in paths) + 1
    if path in paths:
        return [path]
    for start in range(max(len(components) - longest, 1), len(components) - 1):
        end = ".".join(components[start:])
        if end in paths:
            return [end]
    return [candidate for candidate in paths if candidate.endswith(f".{path}")]


def check_shape(module: nn.Module, path: str, update: LowRankUpdate, source: str | Path) -> None:
    """Raise a ValueError for an update that has not the shape of a module's weight.

    Args:
        module: The module.
        path: Its path.
        update: The update; its tensors may be on the meta device.
        source: What the update was read from, for the message.

    Raises:
        ValueError: The shapes differ, or the module has no weight.
    """
    weight = getattr(module, "weight", None)
    stored = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    shape = (len(update.up), *update.down.shape[1:])
    # the linear layer of GPT-2 and an embedding store (in, out)
    is_transposed = type(module).__name__ == "Conv1D" or isinstance(module, nn.Embedding)
    is_transposed = is_transposed or (isinstance(module, HeldMatrix) and module.transposed)
    if isinstance(module, _ConvTransposeNd):
        stored = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    if stored != (shape[::-1] if is_transposed else shape):
        raise ValueError(f"{source}: {path!r} has an update for a weight of {shape}, the model's is {stored}")


def by_path(patterns: Mapping[str, Any] | None, paths: Sequence[str], place: str) -> dict[str, Any]:
    """Return the values that PEFT's patterns, such as `rank_pattern`, give to paths.

    Args:
        patterns: Regular expression of the end of a path -> value.
        paths: Paths of the targets.
        place: What messages name: a file, or a configuration, and the field.

    Returns:
        Path -> value, by the first pattern that the path ends with, as PEFT matches them; without the paths that no
        pattern matches.

    Raises:
        ValueError: A pattern is not a regular expression, or could take too long to match (`check_patterns`).

    Example:
        >>> by_path({"query": 4}, ["layer.0.query", "layer.0.value"], "rank_pattern")
        {'layer.0.query': 4}
    """
    if not patterns:
        return {}
    check_patterns(patterns, paths, place, AS_PEFT_MATCHES)
    compiled = [(re.compile(AS_PEFT_MATCHES.format(pattern)), value) for pattern, value in patterns.items()]
    values = {path: next((value for end, value in compiled if end.match(path)), None) for path in paths}
    return {path: value for path, value in values.items() if value is not None}


# ---- the two files --------------------------------------------------------------------------------------------------
def _read_halves(folder: Path) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return module path -> {"A": (rank, in, ...), "B": (out, rank, ...)}, and the names of all other tensors."""
    file = folder / TENSORS
    tensors = read_tensors(file, f"{folder}: no {TENSORS} (PEFT's older .bin files are not read)")
    check_numbers(tensors, file)
    halves: dict[str, dict[str, Tensor]] = {}
    left_out = []
    for name, value in tensors.items():
        if "lora_embedding" in name:
            raise ValueError(f"{file}: {shown(name)} is the LoRA of an embedding, which is not converted")
        match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name.removeprefix(PREFIX))
        if match:
            path, half = match.groups()
            if half in halves.setdefault(path, {}):
                raise ValueError(f"{file}: {shown(path)} has lora_{half} twice, with {PREFIX} and without")
            halves[path][half] = value
        elif "lora_" in name:
            raise ValueError(f"{file}: {shown(name)} is not a half of a plain LoRA (lora_A.weight, lora_B.weight)")
        else:
            left_out.append(name)
    return halves, left_out


def _scaled_update(file: Path, path: str, halves: Mapping[str, Tensor], rank: int, scale: float) -> LowRankUpdate:
    """Return the update of a target with its scale in `up`; ValueError if its halves do not fit."""
    if len(halves) != 2:
        raise ValueError(f"{file}: {shown(path)} has lora_{next(iter(halves))} alone, expected A and B")
    down, up = halves["A"], halves["B"]  # (rank, in, *kernel) and (out, rank, 1..)
    is_pair = 2 <= down.ndim <= 5 and up.ndim == down.ndim and up.shape[1] == len(down)  # linear, conv1d to conv3d
    if down.ndim > 2 and up.ndim == down.ndim and 0 < up.shape[1] < len(down):
        raise ValueError(
            f"{file}: {shown(path)} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, the LoRA of a grouped "
            "convolution, which in PEFT reads all groups: no change of its weight does that"
        )
    if not is_pair or 0 in (*down.shape, *up.shape) or up[0, 0].numel() != 1 or len(down) != rank:
        raise ValueError(
            f"{file}: {shown(path)} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, expected ({rank}, in) "
            f"and (out, {rank}), or those of a convolution"
        )
    scaled = up.float().flatten(1) * scale
    if not scaled.isfinite().all():
        raise ValueError(f"{file}: lora_B of {shown(path)} times its scale {scale:g} is not finite")
    return LowRankUpdate(down.float(), scaled)
