"""Many small pictures in little space, without loss: columns of pictures as lossless WebP."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Pictures = np.ndarray[Any, Any]  # uint8 (pictures, side, side, 3)

LONGEST = 16_320  # pixels of a column; WebP holds 16,383, and looks for repetitions in as many rows
EFFORT = 6  # the largest of WebP
GAIN = 0.95  # a picture is stored as a change if this takes less than so much of its own bytes


class PackedPictures(NamedTuple):
    """Pictures as WebP files.

    Attributes:
        changed: Numbers of the pictures that are stored as a change: the picture minus the one before it, modulo 256.
            Drawings of one emoji in two skin tones follow each other.
        plain: Columns of the other pictures, in their order.
        changes: Columns of the changes, in their order.
    """

    changed: list[int]
    plain: list[bytes]
    changes: list[bytes]


def packed_pictures(pictures: Pictures) -> PackedPictures:
    """Return pictures as WebP files; it takes some 30 ms of a processor for each picture of 64 pixels.

    Args:
        pictures: The pictures, uint8 (pictures, side, side, 3).
    """
    changes = pictures.copy()
    changes[1:] -= pictures[:-1]
    is_change = np.array([_is_smaller(*pair) for pair in zip(changes, pictures, strict=True)])
    is_change[:1] = False
    return PackedPictures(
        changed=np.flatnonzero(is_change).tolist(),
        plain=_columns(pictures[~is_change]),
        changes=_columns(changes[is_change]),
    )


def unpacked_pictures(packed: PackedPictures, side: int) -> Pictures:
    """Return the pictures, uint8 (pictures, side, side, 3).

    Args:
        packed: The files.
        side: Height and width of a picture.
    """
    plain, changes = (_pictures_of(columns, side) for columns in (packed.plain, packed.changes))
    is_change = np.zeros(len(plain) + len(changes), dtype=bool)
    is_change[packed.changed] = True
    pictures = np.empty((len(is_change), side, side, 3), dtype=np.uint8)
    pictures[~is_change], pictures[is_change] = plain, changes
    for number in packed.changed:
        pictures[number] += pictures[number - 1]
    return pictures


def _is_smaller(change: Pictures, picture: Pictures) -> bool:
    return len(_webp(change, effort=0)) < GAIN * len(_webp(picture, effort=0))


def _columns(pictures: Pictures) -> list[bytes]:
    """Return pictures below each other, as many in a file as fit."""
    side = pictures.shape[1]
    count = LONGEST // side
    starts = range(0, len(pictures), count)
    return [_webp(pictures[start : start + count].reshape(-1, side, 3), effort=EFFORT) for start in starts]


def _webp(image: Pictures, effort: int) -> bytes:
    """Return an image (height, width, 3) as lossless WebP; an effort is from 0 to 6."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", lossless=True, quality=100 if effort else 0, method=effort)
    return stream.getvalue()


def _pictures_of(columns: Sequence[bytes], side: int) -> Pictures:
    from PIL import Image

    images = [np.asarray(Image.open(io.BytesIO(column)).convert("RGB")) for column in columns]
    empty = np.empty((0, side, side, 3), dtype=np.uint8)
    return np.concatenate([empty, *(image.reshape(-1, side, side, 3) for image in images)])
