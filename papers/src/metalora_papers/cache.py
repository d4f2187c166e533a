"""Where this package keeps what it has trained or fetched."""

import os
from pathlib import Path


def cache_folder(kind: str, folder: str | Path | None = None) -> Path:
    """Return `folder`, else `$METALORA_CACHE/KIND`, else `~/.cache/metalora/KIND`.

    Args:
        kind: What is kept, such as "backbones".
        folder: The folder that the user has named, if any.

    Example:
        >>> cache_folder("emoji", "here").name
        'here'
    """
    if folder is not None:
        return Path(folder)
    return Path(os.environ.get("METALORA_CACHE") or Path.home() / ".cache" / "metalora") / kind
