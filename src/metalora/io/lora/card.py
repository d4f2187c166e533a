"""The model card of an exported LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from metalora.adapters.adapter import Adapter

USAGE = """\
```python
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "THIS_FOLDER")
```
"""


def card(adapter: Adapter, base: str | None, ranks: Mapping[str, int], error: float, task: int | None) -> str:
    """Return the text of README.md: what the LoRA is, for which base, how exact it is and how it is loaded.

    Args:
        adapter: The adapter that is exported.
        base: Name or folder of the base, if it has one. The card names it only if it is not a folder here.
        ranks: Rank of every target, by module path.
        error: |Delta W - B A|_F / |Delta W|_F over all targets.
        task: Number of the task that is exported, or None.
    """
    snapshot_of = []
    if task is not None:
        snapshot_of.append(f"task {task} of {adapter.config.tasks}")
    if adapter.conditional:
        snapshot_of.append("one fixed condition")
    purpose = f" for {' and '.join(snapshot_of)}" if snapshot_of else ""
    smallest, largest = min(ranks.values()), max(ranks.values())
    rank = f"rank {largest}" if smallest == largest else f"ranks {smallest} to {largest}"
    exactness = "It is exact: no rank was truncated."
    if error:
        exactness = f"The ranks were truncated: |ΔW - BA| / |ΔW| is {error:.3g}."
    base_class = type(adapter.model).__name__
    paragraph = (
        f"A {adapter.method.name} adapter{purpose}, written as a plain LoRA of {rank} at {len(ranks)} targets of a "
        f"{base_class}. {exactness}"
    )
    return "\n".join([*_front_matter(base), "", f"# {adapter.method.title} as LoRA", "", paragraph, "", USAGE])


def _front_matter(base: str | None) -> list[str]:
    """Return the lines of YAML that the Hub reads."""
    lines = ["---", "library_name: peft"]
    is_name_on_hub = base is not None and not Path(base).exists()  # a path of this machine means nothing to a reader
    if is_name_on_hub:
        lines.append(f"base_model: {base}")
    return [*lines, "tags: [lora, metalora]", "---"]
