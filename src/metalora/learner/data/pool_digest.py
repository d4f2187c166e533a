"""A digest of pools, so that a training is not continued on other labels or pictures under the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalora._util.digest import raw_bytes
from metalora.learner.data.pool import TaskPool


def pools_digest(pools: Sequence[TaskPool]) -> str:
    """Return the SHA-256 of all inputs and labels; of a picture in a file, of its bytes and not of its name.

    Args:
        pools: The pools.

    Example:
        >>> from metalora.learner.data.labels import encode_labels
        >>> first, second = ([TaskPool(["a", "b"], {"mood": encode_labels(codes)})] for codes in ([0, 1], [1, 0]))
        >>> pools_digest(first) == pools_digest(first), pools_digest(first) == pools_digest(second)
        (True, False)
    """
    digest = hashlib.sha256()
    for pool in pools:
        for part in _parts(pool):
            digest.update(len(part).to_bytes(8, "little"))  # so that no two pools have the same parts in a row
            digest.update(part)
    return digest.hexdigest()


def _parts(pool: TaskPool) -> Iterator[bytes]:
    for item in pool.inputs:
        yield _item_bytes(item)
    for name, column in pool.columns.items():
        yield repr((name, list(map(str, column.classes)))).encode()
        yield raw_bytes(column.codes)
    yield b"" if pool.groups is None else raw_bytes(pool.groups)


def _item_bytes(item: Any) -> bytes:
    if isinstance(item, Path):
        return item.read_bytes()
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        return item.encode()
    if isinstance(item, Tensor):
        return raw_bytes(item)
    if hasattr(item, "tobytes"):  # a picture of PIL or an array of numpy
        return bytes(item.tobytes())
    if isinstance(item, Mapping):
        return b"".join(f"{name}\0".encode() + _item_bytes(value) for name, value in sorted(item.items()))
    return raw_bytes(torch.as_tensor(np.asarray(item)))
