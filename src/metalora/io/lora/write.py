"""Tensors and configuration of a LoRA as PEFT names and reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.held_matrix import HeldMatrix
from metalora.io.lora.parameters import MatrixLora
from metalora.io.lora.tensor_names import PREFIX


def lora_tensors(path: str, kind: str, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Return PEFT's two tensors of a target, as copies on the CPU.

    Args:
        path: Module path of the target.
        kind: Kind of its layer ("linear", "conv2d", "embedding", ...).
        left: Left, (rank, in) or (rank, in, kh, kw).
        right: Mid · Right with its scale, (rank, out).

    Returns:
        A (rank, in) or (rank, in, kh, kw), and B (out, rank) or (out, rank, 1, 1), by their names in the file.

    Example:
        >>> tensors = lora_tensors("fc", "linear", torch.ones(2, 8), torch.ones(2, 4))
        >>> {name: tuple(value.shape) for name, value in tensors.items()}
        {'base_model.model.fc.lora_A.weight': (2, 8), 'base_model.model.fc.lora_B.weight': (4, 2)}
    """
    kernel_axes = [1] * (left.ndim - 2)
    up = right.mT.reshape(*right.mT.shape, *kernel_axes)  # B of a convolution is a 1 x 1 convolution
    names = ("lora_embedding_A", "lora_embedding_B") if kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    tensors = {}
    for name, value in zip(names, (left, up), strict=True):
        # safetensors refuses tensors that share their memory or are not contiguous.
        copy = value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        tensors[f"{PREFIX}{path}.{name}"] = copy
    return tensors


def lora_config(adapter: Adapter, ranks: Mapping[str, int], matrices: Sequence[MatrixLora]) -> dict[str, Any]:
    """Return PEFT's LoraConfig as JSON values.

    r is the largest rank, and alpha equals the rank at every target, so that every scale is 1; also in a runtime that
    knows only one rank, such as vLLM.

    Args:
        adapter: The adapter that is exported.
        ranks: Rank of every target, by its path.
        matrices: The LoRAs of the targets that are matrices in a module.
    """
    modules = {path: rank for path, rank in ranks.items() if not isinstance(adapter.layers[path].base, HeldMatrix)}
    modules |= {matrix.place.key: matrix.rank for matrix in matrices if matrix.place.key != matrix.place.path}
    parameters = {matrix.place.key: matrix.rank for matrix in matrices if matrix.place.key == matrix.place.path}
    ranks = modules | parameters  # by what PEFT's patterns match
    model, largest = adapter.model, max(ranks.values())
    # PEFT searches a pattern as `(.*\.)?(key)$`: without ^ and escapes it would match other targets that end alike.
    smaller_ranks = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {"base_model_class": type(model).__name__, "parent_library": type(model).__module__},
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "revision": None,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": smaller_ranks,
        "alpha_pattern": smaller_ranks,
        "target_modules": _target_modules(model, list(modules)),
        "target_parameters": sorted(parameters) or None,
        "fan_in_fan_out": any(target.kind == "conv1d_gpt2" for target in adapter.targets.values()),
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _target_modules(model: nn.Module, paths: list[str]) -> list[str] | str:
    """Return module paths, or a regular expression if PEFT would adapt other modules by the paths.

    PEFT adapts every module whose path ends in one of a list: with the target "fc" also "a.fc".
    """
    inside_a_target = tuple(f"{path}." for path in paths)
    ends_in_a_target = tuple(f".{path}" for path in paths)
    for name, _ in model.named_modules():
        is_other_module = name not in paths and not name.startswith(inside_a_target)
        if is_other_module and name.endswith(ends_in_a_target):
            return "|".join(map(re.escape, paths))
    return paths
