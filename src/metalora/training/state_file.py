"""Files of the state of a training: what `torch.save` writes, behind the SHA-256 of these bytes."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from metalora._util.files import errors_for_users, write_atomically
from metalora._util.reading import read_regular

MAGIC = b"metalora training state 1\n"


def write_state(path: Path, state: dict[str, Any], remark: str) -> None:
    """Write a state to a file, completely or not at all.

    Args:
        path: The file; its folder is made if there is none.
        state: Tensors and plain values.
        remark: What is true if the folder cannot be made.

    Raises:
        ValueError: The file could not be written.
    """
    buffer = io.BytesIO()  # in memory first: a full disk must not leave half a file
    torch.save(state, buffer)
    content = buffer.getvalue()
    with errors_for_users(path, remark):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, MAGIC + hashlib.sha256(content).digest() + content)


def read_state(path: Path) -> dict[str, Any]:
    """Return the state in a file that `write_state` wrote, on the CPU. No code of the file is run.

    The GPU that it was written from may be missing here.

    Raises:
        ValueError: The file is damaged or something else, or it cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "training.pt"
        >>> write_state(file, {"losses": [0.5]}, "nothing is lost")
        >>> read_state(file)
        {'losses': [0.5]}
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise ValueError(f"{path}: could not be read ({error.strerror or error})") from None
    start = len(MAGIC) + hashlib.sha256().digest_size
    digest, saved = content[len(MAGIC) : start], content[start:]
    if not content.startswith(MAGIC) or hashlib.sha256(saved).digest() != digest:
        raise ValueError(f"{path}: not a complete checkpoint (its checksum differs); delete it to restart")
    state: dict[str, Any] = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    return state
