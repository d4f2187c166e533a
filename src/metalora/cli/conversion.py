"""The work of `metalora convert` and `metalora import`: trained LoRAs and their base become one adapter file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from metalora.adapters.layers.base import AdaptedLayer
from metalora.config import AdapterConfig
from metalora.io.adapter_file import save
from metalora.io.lora.convert import convert
from metalora.io.lora.format import TENSORS
from metalora.io.lora.import_ import load_lora


def convert_files(
    loras: Sequence[Path], model: nn.Module, config: AdapterConfig, out: Path, store: Literal["float32", "float16"]
) -> dict[str, Any]:
    """Fit one adapter to trained LoRAs and write it.

    Args:
        loras: Folders in PEFT's format; several of them become tasks.
        model: The base of all LoRAs; it is adapted in place.
        config: The adapter that is fitted.
        out: The adapter file.
        store: Data type of the numbers in the file.

    Returns:
        The relative errors (over all, by target, by LoRA), and parameters and bytes before and after.

    Raises:
        ValueError: What `metalora.io.lora.convert.convert` refuses; nothing is written.
    """
    _, report = convert(model, loras, config)
    save(model, out, getattr(torch, store))  # the error that is reported is that of the unrounded numbers
    return {
        "adapter": str(out),
        "error": report.error,
        "targets": report.fit.by_target(),
        "loras": dict(zip(map(str, loras), report.fit.by_task(), strict=True)),
        "parameters_before": report.params_before,
        "parameters": report.params_after,
        "bytes_before": sum((folder / TENSORS).stat().st_size for folder in loras),
        "bytes": out.stat().st_size,
    }


def import_file(lora: Path, model: nn.Module, out: Path) -> dict[str, Any]:
    """Write a trained LoRA as an adapter file of the method `lora`.

    Args:
        lora: A folder in PEFT's format, or a file of kohya or LyCORIS.
        model: The base of the LoRA; it is adapted in place.
        out: The adapter file.

    Returns:
        The rank of each target, the parameters and the bytes of the file.

    Raises:
        ValueError: What `metalora.io.lora.import_.load_lora` refuses; nothing is written.
    """
    adapter = load_lora(model, lora)
    save(model, out)
    return {
        "adapter": str(out),
        "targets": {path: cast(AdaptedLayer, layer).form.rank for path, layer in adapter.layers.items()},
        "parameters": adapter.num_params(),
        "bytes": out.stat().st_size,
    }
