"""Inputs and labels as they are sent: pictures as bytes of files, texts, labels as JSON has them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Kind = Literal["images", "texts"]
PICTURE_BYTES, TEXT_BYTES = 200, 4  # bytes that an item needs in a request beside its own


@dataclass(frozen=True)
class Upload:
    """Inputs that are ready to be sent.

    Attributes:
        kind: "images" or "texts".
        items: Bytes of picture files, or texts.
    """

    kind: Kind
    items: Sequence[bytes | str]

    def batches(self, most_rows: int, most_bytes: int) -> Iterator[Upload]:
        """Yield the inputs in parts that are small enough, in their order.

        Args:
            most_rows: Largest number of inputs of a part.
            most_bytes: Largest size of a part; an input that is larger is a part of its own.

        Example:
            >>> [len(part.items) for part in Upload("texts", ["a cat"] * 5).batches(2, 1000)]
            [2, 2, 1]
        """
        part: list[bytes | str] = []
        size = 0
        for item in self.items:
            length = item_size(item)
            if part and (len(part) == most_rows or size + length > most_bytes):
                yield Upload(self.kind, part)
                part, size = [], 0
            part.append(item)
            size += length
        yield Upload(self.kind, part)

    @property
    def size(self) -> int:
        """About how many bytes they take in a request."""
        return sum(map(item_size, self.items))


def item_size(item: bytes | str) -> int:
    """Return about how many bytes an input takes in a request."""
    if isinstance(item, bytes):
        return len(item) + PICTURE_BYTES
    return len(json.dumps(item, ensure_ascii=False).encode()) + TEXT_BYTES


def upload_of(inputs: Sequence[Any], kind: Kind) -> Upload:
    """Return inputs as they are sent.

    Args:
        inputs: For images: paths, bytes of files, pictures of PIL, arrays (height, width, 3) of uint8. For texts:
            strings.
        kind: What the service takes.

    Raises:
        ValueError: There are no inputs, or one is not what the service takes; the message has its number.

    Example:
        >>> upload_of(["a cat", "a dog"], "texts").items
        ['a cat', 'a dog']
    """
    if isinstance(inputs, (str, bytes, Path)) or not hasattr(inputs, "__iter__"):
        raise ValueError(f"inputs: expected a list of {kind}, not a single {type(inputs).__name__}")
    encode = _picture_bytes if kind == "images" else _text
    items = [encode(item, f"inputs[{number}]") for number, item in enumerate(inputs)]
    if not items:
        raise ValueError(f"inputs: expected at least one of the {kind}")
    return Upload(kind, items)


def _text(item: Any, name: str) -> str:
    if not isinstance(item, str):
        raise ValueError(f"{name}: a {type(item).__name__}, but this service takes texts")
    return item


def _picture_bytes(item: Any, name: str) -> bytes:
    if isinstance(item, (bytes, bytearray)):
        return bytes(item)
    if isinstance(item, (str, Path)):
        return _file_content(Path(item), name)
    if isinstance(item, np.ndarray):
        return _png(_picture_of(item, name))
    if hasattr(item, "getbands"):
        return _png(item)
    raise ValueError(f"{name}: a {type(item).__name__} is not a picture; expected a path, bytes, a picture or an array")


def _file_content(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: the picture {path} cannot be read ({error.strerror})") from None


def _picture_of(array: np.ndarray[Any, Any], name: str) -> Any:
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        got = f"{array.dtype} {array.shape}"
        raise ValueError(f"{name}: the array is {got}, expected uint8 (height, width, 3)")
    return Image.fromarray(array)


def _png(picture: Any) -> bytes:
    """Return a picture of PIL as a PNG file, which keeps each pixel, upright as its EXIF data says."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(picture)
    if upright.mode not in ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA"):
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG")
    return buffer.getvalue()


def plain_list(values: Any) -> list[Any]:
    """Return labels or groups as JSON has them: arrays and their numbers as Python's, sets as sorted lists.

    Example:
        >>> plain_list(np.array([1, 2])), plain_list([{"b", "a"}])
        ([1, 2], [['a', 'b']])
    """
    if hasattr(values, "tolist"):
        return list(values.tolist())
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted((_plain(name) for name in value), key=str)
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
