"""A trained LoRA as it is on disk: a folder of PEFT, a folder of diffusers, or a single file of any program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from typing import Any

from torch import Tensor

from metalora._util.plain_values import parse_json
from metalora._util.shown import shown
from metalora.io.lora.lycoris import LOHA, LOKR, MAGNITUDE, SUFFIXES
from metalora.io.lora.peft_config import CONFIG, RankAndScale, Start, check_config, read_config, scales_of, start_of
from metalora.io.lora.tensor_files import check_numbers, read_metadata, read_tensors
from metalora.io.lora.tensor_names import BIAS, DOWN, PREFIX, UP, group_tensors

TENSORS = "adapter_model.safetensors"
PICKLED_TENSORS = "adapter_model.bin"  # as PEFT wrote it before safetensors
DIFFUSERS_TENSORS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
PARTS = {"LORA": (DOWN, UP, MAGNITUDE), "LOHA": LOHA, "LOKR": LOKR}
"""Type of an adapter of PEFT -> the parts that a module may have."""
DIFFUSERS_METADATA = "lora_adapter_metadata"  # entry of the header: the LoraConfig of each network


@dataclass(frozen=True)
class LoraTensors:
    """The tensors of a LoRA by the names of modules that the file has.

    Attributes:
        file: The file, for error messages.
        groups: Name of a module -> part ("lora_down.weight", "alpha", ...) -> tensor.
        flat: Whether the names are flattened paths, with "_" in place of dots.
        scales: Name of a module -> its rank and scale by a configuration. Without one the part "alpha" says it.
        start: What the base has lost to the initial values.
        config: The entries of adapter_config.json, of a folder of PEFT; otherwise empty.
        whole: Name of a tensor -> its value, for modules that were trained whole, such as a classifier.
    """

    file: Path
    groups: dict[str, dict[str, Tensor]]
    flat: bool = False
    scales: dict[str, RankAndScale] = field(default_factory=dict)
    start: Start = ""
    config: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


def read_source(path: str | Path, subfolder: str = "") -> LoraTensors:
    """Read a trained LoRA without any model.

    Args:
        path: A folder of PEFT or of diffusers, or a file of safetensors or of PyTorch's own format.
        subfolder: The folder inside of `path` that holds the LoRA.

    Raises:
        ValueError: The path does not exist, a file is missing or damaged, a number is not finite, an entry of the
            configuration is not followed here, or the tensors are not those of a LoRA, LoCon, LoHa or LoKr.

    Example:
        >>> read_source("no-such-file")
        Traceback (most recent call last):
        ValueError: no-such-file: no such file or folder
    """
    place = Path(path) / subfolder
    if not place.exists():
        raise ValueError(f"{place}: no such file or folder")
    if place.is_file():
        is_of_folder = place.name in (TENSORS, PICKLED_TENSORS) and place.with_name(CONFIG).is_file()
        return read_folder(place.parent) if is_of_folder else read_file(place)
    for name in DIFFUSERS_TENSORS:
        if (place / name).is_file() and not (place / CONFIG).exists():
            return read_file(place / name)
    return read_folder(place)


# ---- a folder of PEFT -----------------------------------------------------------------------------------------------
def read_folder(folder: Path) -> LoraTensors:
    """Read a folder that PEFT's `save_pretrained` wrote; see `read_source`."""
    config = read_config(folder)
    file = folder / TENSORS
    if not file.exists() and (folder / PICKLED_TENSORS).is_file():
        file = folder / PICKLED_TENSORS
    tensors = read_tensors(file, f"{folder}: no {TENSORS}")
    check_numbers(tensors, file)
    groups, others = group_tensors(tensors, file)
    _check_parts(groups, config, file)
    for name in others:
        if "lora_" in name:
            meaning = "trained biases, which no factor can hold" if name.endswith(BIAS) else "no part of a plain LoRA"
            raise ValueError(f"{file}: {shown(name)} is {meaning} (lora_A.weight, lora_B.weight)")
    if not groups:
        raise ValueError(f"{file}: holds no LoRA, expected names such as {PREFIX}PATH.lora_A.weight")
    whole = {name.removeprefix(PREFIX): tensors[name] for name in others}
    scales = scales_of(config, list(groups), folder / CONFIG)
    return LoraTensors(file, groups, scales=scales, start=start_of(config), config=config, whole=whole)


def _check_parts(groups: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], file: Path) -> None:
    """Raise a ValueError for a part of another type of adapter, and unless exactly a DoRA has magnitudes."""
    use_dora = bool(config.get("use_dora"))
    for name, group in groups.items():
        for part in group:
            if part not in PARTS[config["peft_type"]]:
                raise ValueError(f"{file}: {part} of {shown(name)} is no part of a {config['peft_type']} of PEFT")
        if (MAGNITUDE in group) != use_dora:
            problem = f"has a {MAGNITUDE}" if MAGNITUDE in group else f"has no {MAGNITUDE}"
            raise ValueError(f"{file}: {shown(name)} {problem}, and use_dora of {CONFIG} is {str(use_dora).lower()}")


# ---- a single file --------------------------------------------------------------------------------------------------
def read_file(file: Path) -> LoraTensors:
    """Read a single file of kohya, LyCORIS, diffusers, ComfyUI, InvokeAI or OneTrainer; see `read_source`."""
    tensors = read_tensors(file, f"{file}: no such file")
    check_numbers(tensors, file)
    groups, others = group_tensors(tensors, file)
    if others:
        known = ", ".join(("lora_A.weight", "lora_B.weight", *SUFFIXES))
        raise ValueError(f"{file}: {shown(others[0])} is not a part of a LoRA, LoCon, LoHa or LoKr ({known})")
    if not groups:
        raise ValueError(f"{file}: holds no LoRA")
    scales = _scales_in_header(file, list(groups))
    _check_one_scale(groups, scales, file)
    from_peft = next((name for name in tensors if name.startswith(PREFIX)), None)
    if from_peft is not None and not scales and not all("alpha" in group for group in groups.values()):
        raise ValueError(f"{file}: {shown(from_peft)} is a name of PEFT, and {CONFIG} next to the file has the scale")
    flat = not any("." in name for name in groups)
    return LoraTensors(file, groups, flat, scales)


def _check_one_scale(
    groups: Mapping[str, Mapping[str, Tensor]], scales: Mapping[str, RankAndScale], file: Path
) -> None:
    """Raise a ValueError if the tensor alpha of a module says another scale than the header."""
    for name, (rank, scale) in scales.items():
        alpha = groups[name].get("alpha")
        if alpha is not None and (alpha.numel() != 1 or not isclose(float(alpha) / rank, scale, rel_tol=1e-3)):
            raise ValueError(
                f"{file}: {shown(name)} has another scale by its alpha than by {DIFFUSERS_METADATA} in the header, "
                f"{scale:g}"
            )


def _scales_in_header(file: Path, names: list[str]) -> dict[str, RankAndScale]:
    """Return the ranks and scales by the configurations that diffusers writes into the header, if it did."""
    text = read_metadata(file).get(DIFFUSERS_METADATA)
    if text is None:
        return {}
    place = f"{file}: {DIFFUSERS_METADATA}"
    entries = parse_json(text, place)
    if not isinstance(entries, dict):
        raise ValueError(f"{place} is {shown(entries)}, expected a mapping")
    configs: dict[str, dict[str, object]] = {}
    for key, value in entries.items():
        network, _, entry = key.partition(".")
        configs.setdefault(network, {})[entry] = value
    scales: dict[str, RankAndScale] = {}
    for network, config in configs.items():
        check_config(config, f"{place} of {network}")
        paths = {name.removeprefix(f"{network}."): name for name in names if name.startswith(f"{network}.")}
        of_network = scales_of(config, list(paths), f"{place} of {network}")
        scales |= {paths[path]: scale for path, scale in of_network.items()}
    return scales
