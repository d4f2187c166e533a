"""`metalora merge`: an adapter file and its base, as a plain checkpoint or a folder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from metalora.adapters.conditioning import Condition
from metalora.experiments.kinds import load_run, prepare_run
from metalora.experiments.models import architectures, load_model
from metalora.io.adapter_file import load, read, save_merged
from metalora.io.transformers_folder import load_base, save_merged_folder


def merge_file(
    adapter: Path, out: str, *, model: str | None, run: Path | None, condition: Path | None, task: int | None
) -> int:
    """Merge the adapter's file into its base (a model by name, or that of a run) and return the bytes written.

    out   a file; a name that ends in "/" is a folder with config and tokenizer, for a model of transformers
    ValueError: another base, a condition and a task at once, a folder for another kind of model.
    """
    if condition is not None and task is not None:
        raise ValueError("merge takes either --condition or --task")
    description, _ = read(adapter)
    chosen = None if condition is None else Condition.load(condition)
    base, tokenizer = _base(model, run, description["base"]["class"], out)
    attached = load(base, adapter)
    if task is not None:
        chosen = attached.task(task)
    path = Path(out)
    if not out.endswith("/"):
        save_merged(base, path, chosen)
        return path.stat().st_size
    save_merged_folder(base, path, tokenizer, chosen)
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _base(model: str | None, run: Path | None, kind: str, out: str) -> tuple[nn.Module, Any]:
    """The base and its tokenizer: of transformers in the class that the adapter was trained on."""
    if run is not None:
        experiment, base = prepare_run(load_run(run))
        return base, getattr(experiment, "tokenizer", None)
    known = architectures()
    folder = known[model]["hub"] if model in known else model.removeprefix("hf:")
    if model in known or model.startswith("hf:"):
        return load_base(folder, kind)
    if out.endswith("/"):
        raise ValueError(f"merge --out {out}: a folder is written for an hf: model only; name a file")
    return load_model(model), None
