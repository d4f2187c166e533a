"""The work of `metalora merge` and `metalora export`: an adapter file and its base become plain weights or a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from metalora._util.files import check_new_folder
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.io.adapter_file import load, read
from metalora.io.lora.export import Exported, export_lora
from metalora.io.lora.export_kohya import KohyaFile, export_kohya
from metalora.io.merged_model import save_merged
from metalora.io.transformers_folder import load_base, load_whole, save_merged_folder
from metalora.zoo import architectures, load_model, minilm_folder, plugin


def merge_file(
    adapter: Path,
    out: str,
    *,
    model: str,
    condition: Path | None,
    task: int | None,
    max_shard_size: str | None = None,
    check_base: bool = True,
    allow_download: bool = False,
) -> int:
    """Merge an adapter file into its base and write the result.

    Args:
        adapter: The adapter file.
        out: A safetensors file. If it ends in "/", a folder with weights, config and tokenizer, which is written for
            a model of transformers only, with the heads that the base's folder has.
        model: Name of the base, as `metalora.zoo.load_model` takes it.
        condition: A condition file, for a generated adapter.
        task: Number of the task, for an adapter with tasks.
        max_shard_size: Largest size of a file in the folder, such as "2GB". None: the sizes of the base's files.
        check_base: Whether to refuse a base with other weights than the adapter and the condition were made on.
        allow_download: Whether an extractor that the file names may be downloaded.

    Returns:
        The bytes that were written.

    Raises:
        ValueError: The base is another one than the adapter's, a condition and a task are both given, or a folder or
            a size of its files is asked for where there is none.
    """
    if condition is not None and task is not None:
        raise ValueError("merge takes either --condition or --task")
    is_folder = out.endswith("/")
    if max_shard_size is not None and not is_folder:
        raise ValueError(f"merge --max-shard-size is for a folder, and --out {out} is a file; end it in a slash")
    if is_folder:
        check_new_folder(out)
    # The small files are read before the base, whose loading takes minutes.
    description, _ = read(adapter)
    chosen = None if condition is None else Condition.load(condition, check_base=check_base)
    if is_folder and not _may_be_transformers(model):
        raise ValueError(f"merge --out {out}: a folder is written for an hf: model only; name a file")
    class_name = description["base"]["class"]
    hub_name = name_in_transformers(model)
    if is_folder and hub_name is not None:
        base, whole, tokenizer = load_whole(hub_name, class_name)
    else:
        base, tokenizer = load_named_base(model, class_name)
        whole = base
    attached = load(base, adapter, check_base=check_base, allow_download=allow_download)
    if task is not None:
        chosen = attached.task(task)
    path = Path(out)
    if not is_folder:
        save_merged(base, path, chosen)
        return path.stat().st_size
    save_merged_folder(base, path, tokenizer, chosen, max_shard_size, whole)
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def export_file(
    adapter: Path,
    out: str,
    *,
    model: str,
    condition: Path | None = None,
    task: int | Literal["all"] | None = None,
    max_rank: int | None = None,
    runtime: str | None = None,
    max_lora_rank: int | None = None,
    check_base: bool = True,
    allow_download: bool = False,
) -> list[Exported]:
    """Write an adapter file as one or several plain LoRAs in PEFT's format.

    Args:
        adapter: The adapter file.
        out: The folder; with all tasks, the folder of their folders.
        model: Name of the base, as `metalora.zoo.load_model` takes it.
        condition: A condition file, for a generated adapter.
        task: Number of the task, or "all".
        max_rank: Ranks above it are truncated to it.
        runtime: Refuse what this runtime does not serve ("vllm").
        max_lora_rank: The runtime's limit.
        check_base: Whether to refuse a base with other weights than the adapter and the condition were made on.
        allow_download: Whether an extractor that the file names may be downloaded.

    Raises:
        ValueError: The base is another one than the adapter's, and what `metalora.io.lora.export.export_lora`
            refuses.
    """
    check_new_folder(out)
    chosen = None if condition is None else Condition.load(condition, check_base=check_base)
    return export_lora(
        _on_its_base(adapter, model, check_base, allow_download), out, chosen, task, max_rank, runtime, max_lora_rank
    )


def export_kohya_file(
    adapter: Path,
    out: str,
    *,
    model: str,
    condition: Path | None,
    task: int | None,
    prefix: str,
    store: Literal["float32", "float16", "bfloat16"],
    check_base: bool = True,
    allow_download: bool = False,
) -> KohyaFile:
    """Write an adapter file as a file of kohya's scripts or LyCORIS.

    Args:
        adapter: The adapter file.
        out: The file.
        model: Name of the base, as `metalora.zoo.load_model` takes it.
        condition: A condition file, for a generated adapter.
        task: Number of the task, for an adapter with tasks.
        prefix: What stands before the names of modules.
        store: Data type of the tensors in the file.
        check_base: Whether to refuse a base with other weights than the adapter and the condition were made on.
        allow_download: Whether an extractor that the file names may be downloaded.

    Raises:
        ValueError: The base is another one than the adapter's, and what `metalora.io.lora.export_kohya.export_kohya`
            refuses.
    """
    chosen = None if condition is None else Condition.load(condition, check_base=check_base)
    return export_kohya(
        _on_its_base(adapter, model, check_base, allow_download), out, chosen, task, prefix, getattr(torch, store)
    )


def _on_its_base(path: Path, model: str, check_base: bool, allow_download: bool) -> Adapter:
    """Load an adapter file on its base; ValueError if the base is another one."""
    description, _ = read(path)
    base, _ = load_named_base(model, description["base"]["class"])
    return load(base, path, check_base=check_base, allow_download=allow_download)


def _may_be_transformers(model: str) -> bool:
    return not model.startswith(("timm:", "torchvision:")) and model != "efficientnet-lite0"


def name_in_transformers(model: str) -> str | None:
    """Return the folder or the name on the Hub that the name of a base stands for; None for other libraries."""
    if model == "minilm":
        return minilm_folder()
    hub_names = architectures()
    if model in hub_names:
        return str(hub_names[model]["hub"])
    return model.removeprefix("hf:") if model.startswith("hf:") else None


def load_named_base(model: str, class_name: str) -> tuple[nn.Module, Any]:
    """Load a base and its tokenizer; a model of transformers in the class that the adapter was trained on.

    Args:
        model: Name of the base, as `metalora.zoo.load_model` takes it.
        class_name: Name of the class, from the adapter file.
    """
    hub_name = name_in_transformers(model)
    if hub_name is not None:
        return load_base(hub_name, class_name)
    return plugin(model) or (load_model(model), None)
