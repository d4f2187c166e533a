"""An adapter as plain LoRA in PEFT's file format: A = Left and B = Mid . Right at every target, with no SVD."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from metalora._util.files import new_folder, write_atomically
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import check_untied
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.layers.base import AdaptedLayer
from metalora.io.lora.card import card
from metalora.methods.records import Biased
from metalora.tensornet.truncation.truncated_svd import TruncatedProduct, truncated_svd


@dataclass(frozen=True)
class Runtime:
    """What a server of LoRA takes: kinds of layers, and the largest rank unless it is started with another."""

    kinds: tuple[str, ...]
    max_rank: int


RUNTIMES = {"vllm": Runtime(("linear", "embedding"), 16)}


@dataclass(frozen=True)
class Exported:
    """A LoRA directory: the rank of every target, and |Delta W - B A|_F / |Delta W|_F of each and of all together.

    The errors are zero unless `max_rank` cut something.
    """

    folder: str
    ranks: dict[str, int]
    errors: dict[str, float]
    error: float
    bytes: int


@torch.no_grad()
def export_lora(
    adapter: Adapter,
    folder: str | Path,
    condition: Condition | None = None,
    task: int | Literal["all"] | None = None,
    max_rank: int | None = None,
    runtime: str | None = None,
    max_lora_rank: int | None = None,
) -> list[Exported]:
    """Write a directory that `peft.PeftModel.from_pretrained` loads, or nothing; what was written, a directory each.

    condition      of one, for an adapter with generated factors: a snapshot
    task           number of the task, for an adapter with tasks; "all": a directory a task, folder/task0, ...
    max_rank       targets of a larger rank are cut to it, optimally in the Frobenius norm
    runtime        "vllm": refuse what it does not serve; max_lora_rank is the option that it is started with
    ValueError: no or too many conditions, a merged adapter, tied weights, a layer that PEFT's LoRA computes otherwise,
    a rank above the runtime's limit, a folder that is there already.
    """
    _check(adapter)
    if max_rank is not None and max_rank < 1:
        raise ValueError(f"export: max_rank is {max_rank}, expected at least 1")
    if task == "all" and not adapter.task_keys:
        raise ValueError(f"export: {adapter.method.name} with tasks={adapter.config.tasks} has no tasks")
    tasks = range(adapter.config.tasks) if task == "all" else [task]
    values = {number: snapshot(adapter, condition, number) for number in tasks}
    _check_runtime(adapter, runtime, max_lora_rank, max_rank)
    with new_folder(folder) as temporary:
        found = []
        for number, one in values.items():
            name = f"task{number}" if task == "all" else ""
            (temporary / name).mkdir(exist_ok=True)
            written = _write(adapter, temporary / name, one, max_rank, number)
            found.append(Exported(str(Path(folder) / name), *written))
    return found


def snapshot(adapter: Adapter, condition: Condition | None, task: int | None) -> dict[str, Tensor]:
    """The values of all factors that differ by example, for one condition and one task; ValueError: see export_lora."""
    chosen, method = condition if condition is not None else adapter.fixed, adapter.method.name
    if condition is not None and not adapter.per_example:
        raise ValueError(f"export: {method} has no generated factors here, so a condition means nothing")
    if chosen is not None and len(chosen) != 1:
        raise ValueError(f"export: the condition is for {len(chosen)} examples; export one (condition.mean())")
    values = {} if chosen is None else dict(chosen.values)
    if task is not None:
        values |= adapter.task(task).values
    made = adapter.conditioner.shapes if adapter.conditioner is not None else {}
    for key, shape in made.items():
        if key not in values:
            raise ValueError(
                f"export: {method} makes {key!r} from a condition, pass condition=... (adapter.condition(inputs) makes "
                "one, .mean() of it is one for all)"
            )
        if values[key].shape[1:] != torch.Size(shape):
            raise ValueError(f"export: the condition has {key!r} of shape {tuple(values[key].shape[1:])}, not {shape}")
    if any(key not in values for key in adapter.task_keys):
        raise ValueError(f"export: {method} has {adapter.config.tasks} tasks: name one, or all of them")
    return values


# ---- what cannot be exported ----------------------------------------------------------------------------------------
def _check(adapter: Adapter) -> None:
    """ValueError for what a LoRA of PEFT cannot repeat."""
    if adapter.merged:
        raise ValueError("export: the adapter is merged; unmerge it first")
    for path, layer in adapter.layers.items():
        if not isinstance(layer, AdaptedLayer):
            raise ValueError(
                f"export: target {path!r}: {type(layer).__name__} is not linear, so that no LoRA equals it"
            )
    check_untied(adapter, "export")
    names = Counter(id(m) for _, m in adapter.model[0].named_modules(remove_duplicate=False))
    for path, layer in adapter.layers.items():
        if names[id(layer)] > 1:
            raise ValueError(f"export: target {path!r} has several names in the model; PEFT would adapt one of them")
        if adapter.method.has(Biased) and getattr(layer.base, "bias", None) is None:
            raise ValueError(f"export: {adapter.method.name} has biases, and target {path!r} none to add them to")
        reason = _foreign(layer.base)
        if reason:
            raise ValueError(f"export: target {path!r} {reason}")


def _foreign(base: nn.Module) -> str:
    """Why PEFT's LoRA of a layer is not base + Delta W; empty if it is."""
    if isinstance(base, (nn.Conv1d, nn.Conv2d)):
        wide = any(k > 1 and d > 1 for k, d in zip(base.kernel_size, base.dilation, strict=True))
        if wide:
            return f"has dilation {base.dilation}, which PEFT's LoRA of a convolution leaves out"
        if base.padding_mode != "zeros":
            return f"has padding mode {base.padding_mode!r}, which PEFT's LoRA of a convolution leaves out"
    if isinstance(base, nn.Embedding):
        if base.max_norm is not None:
            return "has max_norm, which PEFT's LoRA would apply to its own table too"
        if getattr(base, "embed_scale", None) is not None:
            return "has embed_scale, by which versions of PEFT multiply the LoRA, or do not"
    return ""


def _check_runtime(adapter: Adapter, runtime: str | None, limit: int | None, max_rank: int | None) -> None:
    """ValueError for a target that the runtime does not serve, or whose rank is above its limit."""
    if runtime is None:
        if limit is not None:
            raise ValueError("export: max_lora_rank is the limit of a runtime; name the runtime")
        return
    if runtime not in RUNTIMES:
        raise ValueError(f"export: unknown runtime {runtime!r}{nearest(runtime, RUNTIMES)}")
    if any(layer.biases for layer in adapter.layers.values()):
        raise ValueError(f"export: {adapter.method.name} has biases, and {runtime}'s LoRA has none")
    limit = RUNTIMES[runtime].max_rank if limit is None else limit
    for path, layer in adapter.layers.items():
        if layer.target.kind not in RUNTIMES[runtime].kinds:
            raise ValueError(f"export: {runtime} has no LoRA for target {path!r}, a {layer.target.kind}")
        rank = layer.cut.rank if max_rank is None else min(max_rank, layer.cut.rank)
        if rank > limit:
            raise ValueError(
                f"export: target {path!r} has rank {rank}, above the {limit} of {runtime}'s max_lora_rank: start "
                f"{runtime} with a larger one, or cut the rank with max_rank={limit}"
            )


# ---- the files ------------------------------------------------------------------------------------------------------
def _write(
    adapter: Adapter, folder: Path, values: Mapping[str, Tensor], max_rank: int | None, task: int | None
) -> tuple[dict[str, int], dict[str, float], float, int]:
    """Fill a folder; the ranks, the errors, the error of all together and the bytes."""
    pairs = {path: _pair(adapter, path, values, max_rank) for path in adapter.layers}
    shifts = {path: layer.shift(dict(values) or None) for path, layer in adapter.layers.items()}
    biased = any(shift is not None for shift in shifts.values())
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        tensors |= lora_tensors(path, adapter.layers[path].target.kind, pair.left, pair.right)
        if biased:  # PEFT has a bias at every target or at none
            shift = pair.right.new_zeros(pair.right.shape[1]) if shifts[path] is None else shifts[path]
            tensors[f"base_model.model.{path}.lora_B.bias"] = shift.detach().to("cpu").contiguous()
    ranks = {path: len(pair.left) for path, pair in pairs.items()}
    errors = {path: pair.discarded / pair.norm if pair.norm else 0.0 for path, pair in pairs.items()}
    whole = math.hypot(*(pair.norm for pair in pairs.values()))
    error = math.hypot(*(pair.discarded for pair in pairs.values())) / whole if whole else 0.0
    config = lora_config(adapter, ranks) | ({"lora_bias": True} if biased else {})
    written = {
        "adapter_model.safetensors": dump_tensors(tensors, {"format": "pt"}),
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        "README.md": card(adapter, config["base_model_name_or_path"], ranks, error, task).encode(),
    }
    for name, content in written.items():
        write_atomically(folder / name, content)
    return ranks, errors, error, sum(map(len, written.values()))


def _pair(adapter: Adapter, path: str, values: Mapping[str, Tensor], max_rank: int | None) -> TruncatedProduct:
    left, right = adapter.layers[path].pair(dict(values) or None)
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        raise ValueError(f"export: the factors of target {path!r} are not finite")
    return truncated_svd(left, right, max_rank or len(left))


def lora_tensors(path: str, kind: str, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    """PEFT's tensors of a target: A (k, *inputs) and B (out, k), with the kernel's axes of one for a convolution."""
    names = ("lora_embedding_A", "lora_embedding_B") if kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    up = right.mT.reshape(*right.mT.shape, *[1] * (left.ndim - 2))
    return {
        f"base_model.model.{path}.{name}": value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, value in zip(names, (left, up), strict=True)
    }


def lora_config(adapter: Adapter, ranks: Mapping[str, int]) -> dict[str, Any]:
    """PEFT's LoraConfig as JSON; r is the largest rank and alpha equals the rank, so that every scale is one.

    A runtime that knows one rank only (vLLM) has scale one too. A pattern key is searched as `(.*\\.)?(key)$`, so that
    it must start with ^ and be escaped, or it would match other targets that end alike.
    """
    model, largest = adapter.model[0], max(ranks.values())
    smaller = {f"^{re.escape(path)}": rank for path, rank in ranks.items() if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {"base_model_class": type(model).__name__, "parent_library": type(model).__module__},
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "revision": None,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": _target_modules(adapter),
        "fan_in_fan_out": any(one.kind == "conv1d_gpt2" for one in adapter.targets.values()),
        "bias": "none",
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _target_modules(adapter: Adapter) -> list[str] | str:
    """Full paths; where another module's path ends in one, which PEFT would adapt too, a pattern that is exact."""
    paths = list(adapter.layers)
    inside = tuple(f"{path}." for path in paths)
    others = [name for name, _ in adapter.model[0].named_modules() if name not in adapter.layers]
    others = [name for name in others if not name.startswith(inside)]
    if any(name.endswith(tuple(f".{path}" for path in paths)) for name in others):
        return "|".join(map(re.escape, paths))
    return paths
