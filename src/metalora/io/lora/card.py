"""The model card of an exported LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metalora.adapters.adapter import Adapter


def card(adapter: Adapter, base: str | None, ranks: Mapping[str, int], error: float, task: int | None) -> str:
    """What it is, of which base, how it is loaded, and what was lost: README.md of a LoRA directory."""
    smallest, largest = min(ranks.values()), max(ranks.values())
    rank = f"rank {largest}" if smallest == largest else f"ranks {smallest} to {largest}"
    made = [f"task {task} of {adapter.config.tasks}"] if task is not None else []
    made += ["one fixed condition"] if adapter.conditional else []
    hub = base is not None and not Path(base).exists()  # a folder here is of no use to who reads the card
    lost = f"The ranks were cut: |ΔW - BA| / |ΔW| is {error:.3g}." if error else "It is exact: no rank was cut."
    front = ["library_name: peft", *([f"base_model: {base}"] if hub else []), "tags: [lora, metalora]"]
    return "\n".join([
        "---", *front, "---", "",
        f"# {adapter.method.title} as LoRA", "",
        f"A {adapter.method.name} adapter{' for ' + ' and '.join(made) if made else ''}, written as a plain LoRA of "
        f"{rank} at {len(ranks)} targets of a {type(adapter.model[0]).__name__}. {lost}", "",
        "```python", "from peft import PeftModel", "",
        'model = PeftModel.from_pretrained(base_model, "THIS_FOLDER")', "```", "",
    ])  # fmt: skip
