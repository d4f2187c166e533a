"""The model card: how to load an adapter that PEFT alone does not know."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

from peft import PeftModel

from metalora._util.files import replace_file
from metalora.integrations.peft.registration import NAME

INSTRUCTIONS = """
## How to load it

This adapter needs the library that it was made with:

```python
import metalora.peft

model = metalora.peft.load(base_model, "THIS_FOLDER")
```

Once `metalora.peft` is imported, `peft.PeftModel.from_pretrained` loads it too.
"""


def add_loading_instructions(folder: str | Path) -> None:
    """Add the instructions to the model card of a folder, if there is a card and it does not have them yet.

    Args:
        folder: Folder of a saved adapter.
    """
    card = Path(folder) / "README.md"
    if not card.is_file():
        return
    text = card.read_text(encoding="utf-8")
    if INSTRUCTIONS not in text:  # a folder may be saved to several times
        replace_file(card, f"{text.rstrip()}\n{INSTRUCTIONS}".encode())


def patch_push_to_hub() -> None:
    """Make `PeftModel.push_to_hub` add the instructions, because it replaces the saved card by one of its own."""
    upload = PeftModel._upload_modified_files

    @wraps(upload)
    def upload_with_instructions(model: PeftModel, working_dir: str, *args: Any, **kwargs: Any) -> Any:
        if any(config.peft_type == NAME for config in model.peft_config.values()):
            add_loading_instructions(working_dir)
        return upload(model, working_dir, *args, **kwargs)

    PeftModel._upload_modified_files = upload_with_instructions
