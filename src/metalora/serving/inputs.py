"""The inputs of requests: files of pictures and texts become what the network takes, or an error names them."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metalora.learner.data import Preprocessor
from metalora.serving.errors import ServiceError
from metalora.serving.schemas import Inputs

MOST_TIMES_LONGER = 100  # one side of a picture than the other: the shorter one is made as long as the network needs
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


class InputReader:
    """Turns the inputs of requests into tensors, from any thread.

    Args:
        preprocessor: The preparation of pictures or texts that the network was trained with.
        max_pixels: Largest picture, in pixels.

    Attributes:
        kind: "images" or "texts".

    Raises:
        ValueError: The network takes arrays, which the service does not.
    """

    def __init__(self, preprocessor: Preprocessor, max_pixels: int):
        if preprocessor.kind not in ("images", "text"):
            raise ValueError("this learner takes arrays; a service takes pictures or texts")
        self.kind = "images" if preprocessor.kind == "images" else "texts"
        self._preprocessor, self._max_pixels = preprocessor, max_pixels
        self._one_at_a_time = threading.Lock()  # a tokenizer raises an error if two threads set its truncation

    def check(self, inputs: Inputs, most: int, field: str = "inputs") -> Sequence[bytes] | Sequence[str]:
        """Return the inputs as they were sent; ServiceError if there are too many, or of the other kind."""
        (kind,) = inputs.model_fields_set
        if kind != self.kind:
            raise ServiceError("invalid_input", f"this service takes {self.kind}, not {kind}", f"{field}.{kind}")
        items: Sequence[Any] = getattr(inputs, kind)
        if len(items) > most:
            message = f"{len(items)} {kind}, expected at most {most}"
            raise ServiceError("invalid_input", message, f"{field}.{kind}")
        return items

    def prepare(self, items: Sequence[Any], field: str = "inputs") -> list[Tensor]:
        """Return a tensor for each input, which `Preprocessor.collate` takes.

        Args:
            items: Contents of files, or texts.
            field: What messages call the inputs.

        Raises:
            ServiceError: An input cannot be read; the error names it.
        """
        names = [f"{field}.{self.kind}[{number}]" for number in range(len(items))]
        try:
            if self.kind == "images":
                opened = [self._opened(item, name) for item, name in zip(items, names, strict=True)]
                return self._preprocessor.encode(opened, names)
            with self._one_at_a_time:
                encoded = self._preprocessor.encode(items, names)
        except ValueError as error:
            wrong = str(error).partition(":")[0]
            raise ServiceError("invalid_input", str(error), wrong if wrong in names else field) from None
        for tokens, name in zip(encoded, names, strict=True):
            if not len(tokens):
                raise ServiceError("invalid_input", f"{name}: the text has no tokens", name)
        return encoded

    def _opened(self, content: bytes, name: str) -> Any:
        """Return a picture whose header is read and whose pixels are not; ValueError if it must not be decoded."""
        from PIL import Image, UnidentifiedImageError

        try:
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"{name}: not a picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
        except Image.DecompressionBombError:
            raise ValueError(f"{name}: the picture has more than {self._max_pixels} pixels") from None
        except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, OverflowError) as error:
            raise ValueError(f"{name}: the picture cannot be read ({type(error).__name__})") from None
        if image.width * image.height > self._max_pixels:
            size = f"{image.width} x {image.height}"
            raise ValueError(f"{name}: the picture has {size} pixels, expected at most {self._max_pixels}")
        if max(image.size) > MOST_TIMES_LONGER * min(image.size):
            raise ValueError(f"{name}: one side of the picture is more than {MOST_TIMES_LONGER} times the other")
        return image
