"""What `make site` does to the docstrings before they are read (the key `extensions` of mkdocs.yml)."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

LIST_AFTER_TEXT = re.compile(r"^( *[^\s-][^\n]*:)\n(?= *- )", re.M)


class HouseStyle(Extension):
    """Write docstrings as griffe and Markdown need them: `Examples:`, and an empty line before a list."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a name."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = LIST_AFTER_TEXT.sub(r"\1\n\n", text)
