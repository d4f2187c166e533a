"""`metalora convert` and `import`: trained LoRAs and their base, as one adapter file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalora.config import AdapterConfig
from metalora.io.adapter_file import save
from metalora.io.lora.convert import convert
from metalora.io.lora.format import TENSORS
from metalora.io.lora.import_ import load_lora


def convert_files(
    loras: Sequence[Path], model: nn.Module, config: AdapterConfig, out: Path, store: str
) -> dict[str, Any]:
    """Write the adapter; returns its errors (all, by target, by LoRA) and the bytes before and after.

    ValueError: what `convert` refuses; nothing is written.
    """
    _, found = convert(model, loras, config)
    save(model, out, getattr(torch, store))
    return {
        "adapter": str(out),
        "error": found.error,
        "targets": found.fit.by_target(),
        "loras": dict(zip(map(str, loras), found.fit.by_task(), strict=True)),
        "parameters_before": found.params_before,
        "parameters": found.params_after,
        "bytes_before": sum((folder / TENSORS).stat().st_size for folder in loras),
        "bytes": out.stat().st_size,
    }


def import_file(lora: Path, model: nn.Module, out: Path) -> dict[str, Any]:
    """Write a LoRA as an adapter file of method `lora`; returns its targets' ranks, its parameters and its bytes.

    ValueError: what `load_lora` refuses; nothing is written.
    """
    adapter = load_lora(model, lora)
    save(model, out)
    return {
        "adapter": str(out),
        "targets": {path: layer.cut.rank for path, layer in adapter.layers.items()},
        "parameters": adapter.num_params(),
        "bytes": out.stat().st_size,
    }
