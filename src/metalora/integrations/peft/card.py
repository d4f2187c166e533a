"""The model card: how to load an adapter that PEFT alone does not know."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

from peft import PeftModel

from metalora.integrations.peft.registration import NAME

CARD = """
## How to load it

This adapter needs the library that it was made with:

```python
import metalora.peft

model = metalora.peft.load(base_model, "THIS_FOLDER")
```

Once `metalora.peft` is imported, `peft.PeftModel.from_pretrained` loads it too.
"""


def say_how_to_load(folder: str | Path) -> None:
    """Add it to the model card of a folder, if there is one that does not say it."""
    card = Path(folder) / "README.md"
    if card.is_file() and CARD not in (text := card.read_text(encoding="utf-8")):
        card.write_text(f"{text.rstrip()}\n{CARD}", encoding="utf-8")


def keep_when_pushed() -> None:
    """Let `push_to_hub` say it too: it puts a card of its own over the one that was saved."""
    upload = PeftModel._upload_modified_files

    @wraps(upload)
    def with_card(model: PeftModel, working_dir: str, *args: Any, **kwargs: Any) -> Any:
        if any(config.peft_type == NAME for config in model.peft_config.values()):
            say_how_to_load(working_dir)
        return upload(model, working_dir, *args, **kwargs)

    PeftModel._upload_modified_files = with_card
