"""`metalora merge` and `export`: an adapter file and its base, as a plain checkpoint, a folder or plain LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import nn

from metalora.adapters.conditioning.condition import Condition
from metalora.io.adapter_file import load, read
from metalora.io.lora.export import Exported, export_lora
from metalora.io.merged_model import save_merged
from metalora.io.transformers_folder import load_base, save_merged_folder
from metalora.zoo import architectures, load_model, plugin


def merge_file(
    adapter: Path,
    out: str,
    *,
    model: str,
    condition: Path | None,
    task: int | None,
    max_shard_size: str | None = None,
) -> int:
    """Merge the adapter's file into its base (a model by name) and return the bytes written.

    out   a file; a name that ends in "/" is a folder with config and tokenizer, for a model of transformers
    max_shard_size   of the folder's files ("2GB"); None: as the base's
    ValueError: another base, a condition and a task at once, a folder for another kind of model, no size.
    """
    if condition is not None and task is not None:
        raise ValueError("merge takes either --condition or --task")
    if max_shard_size is not None and not out.endswith("/"):
        raise ValueError(f"merge --max-shard-size is for a folder, and --out {out} is a file; end it in a slash")
    description, _ = read(adapter)
    chosen = None if condition is None else Condition.load(condition)
    if out.endswith("/") and not _may_be_of_transformers(model):
        raise ValueError(f"merge --out {out}: a folder is written for an hf: model only; name a file")
    base, tokenizer = _base(model, description["base"]["class"])
    attached = load(base, adapter)
    if task is not None:
        chosen = attached.task(task)
    path = Path(out)
    if not out.endswith("/"):
        save_merged(base, path, chosen)
        return path.stat().st_size
    save_merged_folder(base, path, tokenizer, chosen, max_shard_size)
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
) -> list[Exported]:
    """Write the adapter's file as plain LoRA for PEFT; ValueError: another base, and what `export_lora` refuses."""
    description, _ = read(adapter)
    chosen = None if condition is None else Condition.load(condition)
    base, _ = _base(model, description["base"]["class"])
    return export_lora(load(base, adapter), out, chosen, task, max_rank, runtime, max_lora_rank)


def _may_be_of_transformers(model: str) -> bool:
    return not model.startswith(("timm:", "torchvision:")) and model != "efficientnet-lite0"


def _base(model: str, kind: str) -> tuple[nn.Module, Any]:
    """The base and its tokenizer: of transformers in the class that the adapter was trained on."""
    known = architectures()
    if model.startswith("hf:") or model in known:
        return load_base(known[model]["hub"] if model in known else model.removeprefix("hf:"), kind)
    return plugin(model) or (load_model(model), None)
