"""The two files of a saved adapter: what is in them is checked before PEFT reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import Tensor

from metalora._util.reading import read_json
from metalora._util.shown import shown
from metalora.config import check_field
from metalora.integrations.peft.container import CONTAINER_NAME
from metalora.integrations.peft.registration import NAME
from metalora.io.lora.tensor_files import check_numbers, read_tensors
from metalora.io.lora.tensor_names import PREFIX

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
ADAPTER = f"{CONTAINER_NAME}.metalora_adapters."  # in the names of the adapter's tensors


@dataclass(frozen=True)
class _OfPeft:
    """The entries of the configuration that PEFT reads itself; our own are checked by `TensorNetworkConfig`."""

    auto_mapping: dict[str, str | None] | None = None
    base_model_name_or_path: str | None = None
    exclude_modules: str | tuple[str, ...] | None = None
    inference_mode: bool = False
    init_weights: bool = True
    layers_pattern: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    modules_to_save: tuple[str, ...] | None = None
    peft_version: str | None = None
    revision: str | None = None
    target_modules: str | tuple[str, ...] | None = None
    target_parameters: tuple[str, ...] | None = None
    task_type: str | None = None


@dataclass(frozen=True)
class _Placement:
    """The entries of `placement`."""

    targets: dict[str, dict[str, int]]
    factors: dict[str, str]
    tensors: dict[str, tuple[int, ...]]
    frozen: str | None = None
    digest: str | None = None


@dataclass(frozen=True)
class _Base:
    """The entries of `placement.base`."""

    fingerprint: str | None
    weights: str | None = None
    rest: str | None = None
    left_out: tuple[str, ...] = ()


def check_folder(folder: Path) -> None:
    """Raise a ValueError if the files of a folder are missing or damaged, or do not belong together.

    A folder of another kind of adapter passes: PEFT says what it is.

    Args:
        folder: The folder.
    """
    config = _read_config(folder)
    if config["peft_type"] != NAME:
        return
    path, tensors = _read_tensors(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for key, value in tensors.items():
        _check_tensor(key, value, config.get("modules_to_save") or (), path)
        wrapper, _, name = key.partition(ADAPTER)
        if name and wrapper != PREFIX:  # PEFT would ignore it, and the adapter keep what its seed made
            raise ValueError(f"{path}: tensor {shown(key)}, expected a name that begins with {PREFIX}{ADAPTER}")
        if name:
            shapes[name] = tuple(value.shape)
    if config.get("placement") is not None:
        _check_shapes(shapes, config["placement"]["tensors"], path)


def _read_config(folder: Path) -> dict[str, Any]:
    """The contents of adapter_config.json, whose entries have the types that they must have."""
    path = folder / CONFIG_FILE
    config = read_json(path, f"{folder}: no {CONFIG_FILE}, expected the folder of a saved adapter")
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ValueError(f"{path}: no peft_type, expected {NAME!r}")
    if config["peft_type"] == NAME:
        _check_entries(_OfPeft, config, str(path))
        if config.get("placement") is not None:
            _check_entries(_Placement, config["placement"], f"{path}: placement")
            _check_entries(_Base, config["placement"].get("base"), f"{path}: placement.base")
            if not isinstance(config["placement"]["base"].get("class"), str):
                raise ValueError(f"{path}: placement.base has no 'class', the name of the base's class")
    return config


def _check_entries(cls: Any, values: Any, place: str) -> None:
    """Raise a ValueError if an entry is missing or of another type; further ones are not looked at."""
    if not isinstance(values, dict):
        raise ValueError(f"{place} is {shown(values)}, expected a mapping")
    for field in fields(cls):
        if field.name in values:
            check_field(cls, field.name, values[field.name], f"{place}: {field.name}")
        elif field.default is MISSING:
            raise ValueError(f"{place}: missing key {field.name!r}")


def _read_tensors(folder: Path) -> tuple[Path, Mapping[str, Tensor]]:
    """The file that PEFT will read, and its tensors."""
    path = folder / TENSOR_FILE
    if not path.exists() and (folder / PICKLE_FILE).is_file():
        path = folder / PICKLE_FILE
    return path, read_tensors(path, f"{folder}: no {TENSOR_FILE}, expected the folder of a saved adapter")


def _check_tensor(key: str, value: Tensor, modules_to_save: Any, path: Path) -> None:
    """Raise a ValueError for a tensor that is no part of an adapter, or has numbers that are not finite."""
    is_other = ADAPTER not in key
    if (
        is_other
        and {*key.split(".")}.isdisjoint({*EMBEDDING_LAYER_NAMES})
        and not any(f".{name}." in f".{key}." for name in modules_to_save)
    ):
        raise ValueError(f"{path}: tensor {shown(key)} is not expected, it would replace one of the base")
    if not is_other or value.is_floating_point():  # a saved module may have counters
        check_numbers({key: value}, path)


def _check_shapes(shapes: Mapping[str, tuple[int, ...]], saved: Mapping[str, Any], path: Path) -> None:
    """Raise a ValueError unless the adapter's tensors are those that its configuration lists."""
    for name in sorted(shapes.keys() ^ saved.keys()):
        raise ValueError(f"{path}: tensor {shown(name)} is {'missing' if name in saved else 'not expected'}")
    for name, shape in shapes.items():
        if shape != tuple(saved[name]):
            raise ValueError(f"{path}: tensor {shown(name)} has shape {shape}, expected {tuple(saved[name])}")
