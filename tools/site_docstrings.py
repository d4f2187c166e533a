"""What `make site` does to the docstrings before they are read (the key `extensions` of mkdocs.yml)."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Read a section `Example:` as `Examples:`, the only one of the two names that griffe knows as code."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
