"""Settings and versions as names and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested settings by their dotted names, lists as text.

    Example:
        >>> flat_settings({"steps": 5, "adapter": {"rank": 4, "targets": ["conv", "linear"]}})
        {'steps': 5, 'adapter.rank': 4, 'adapter.targets': 'conv, linear'}
    """
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            flat[prefix + name] = ", ".join(map(str, value)) or "none"
        else:
            flat[prefix + name] = "none" if value is None else value
    return flat
