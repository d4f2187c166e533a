"""Pictures of every kind and mode as RGB images of PIL."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".avif")
DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # modes with more than eight bits
CHANNELS = (1, 3, 4)  # grey, colour, colour with alpha
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, MemoryError)


def is_picture_path(text: str | Path) -> bool:
    """Return whether a text ends as the name of a picture file does.

    Example:
        >>> is_picture_path("cats/1.JPG"), is_picture_path("a cat")
        (True, False)
    """
    return str(text).lower().endswith(SUFFIXES)


def open_picture(item: Any, name: str = "picture") -> Image:
    """Return a picture as an RGB image of PIL.

    The orientation in EXIF is applied; transparent parts become white; of an animation, the first picture counts; grey
    with 16 bits is reduced to 8.

    Args:
        item: A path, an image of PIL, the bytes of a file, a mapping with "bytes" or "path" (as `datasets` has them),
            an array (height, width) or (height, width, channels), or a tensor (height, width) or (channels, height,
            width), of uint8 or of floating-point numbers from 0 to 1.
        name: How a message calls a picture that is not a file.

    Raises:
        ValueError: The file cannot be read as a picture, or the item is not a picture; the message names it.
        ModuleNotFoundError: Pillow is not installed.

    Example:
        >>> open_picture(np.zeros((4, 6), dtype=np.uint8)).size
        (6, 4)
    """
    if isinstance(item, Mapping):
        content = item.get("bytes")
        item = content if content is not None else Path(item.get("path") or "")
    if isinstance(item, str | Path):
        return _from_file(item, str(item))
    if isinstance(item, bytes):
        return _from_file(io.BytesIO(item), name)
    if isinstance(item, Tensor | np.ndarray):
        return _to_rgb(_from_array(item, name))
    if hasattr(item, "getbands"):
        return _decoded(item, name)
    raise ValueError(f"{name}: a {type(item).__name__} is not a picture; expected a path, an image or an array")


def _from_file(source: Any, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not isinstance(source, io.BytesIO):
        check_file(Path(source))
    try:
        with Image.open(source) as image:
            return _decoded(image, name)
    except UnidentifiedImageError:
        raise ValueError(f"{name}: this file is not a picture that can be read") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: the picture is too large ({error})") from None
    except DECODING_ERRORS as error:
        raise ValueError(f"{name}: the picture cannot be read ({_first_line(error)})") from None


def check_file(path: Path) -> None:
    """Check that a path is a file that is not empty.

    Raises:
        ValueError: It is not; the message says what is there.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder, expected a file")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes)")


def _decoded(image: Image, name: str) -> Image:
    """Read the pixels of an image, turn it upright and convert it."""
    from PIL import ImageOps

    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except DECODING_ERRORS as error:
        raise ValueError(f"{name}: the picture cannot be read ({_first_line(error)})") from None
    if 0 in upright.size:
        raise ValueError(f"{name}: the picture has no pixels (its size is {upright.size})")
    return _to_rgb(upright)


def _first_line(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0] if text else type(error).__name__


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode in DEEP_GREY:
        return _grey_of_8_bits(image).convert("RGB")
    if image.mode == "F":
        return _grey_of_floats(image).convert("RGB")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if has_alpha:
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_of_8_bits(image: Image) -> Image:
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if image.mode != "I" or values.max() > 255:  # an image of mode "I" may hold 8 bits only
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _grey_of_floats(image: Image) -> Image:
    from PIL import Image

    values = np.nan_to_num(np.asarray(image))
    scale = 255 if values.max() <= 1 else 1
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def _from_array(item: Tensor | np.ndarray[Any, Any], name: str) -> Image:
    from PIL import Image

    if isinstance(item, Tensor):
        values = item.detach().cpu().numpy()
        channels_first = True
    else:
        values = item
        channels_first = values.ndim == 3 and values.shape[0] in CHANNELS and values.shape[-1] not in CHANNELS
    if values.ndim == 3 and channels_first:
        values = values.transpose(1, 2, 0)
    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[-1] not in CHANNELS):
        raise ValueError(f"{name}: the shape {tuple(item.shape)} is not that of a picture; expected (height, width, 3)")
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    return Image.fromarray(np.ascontiguousarray(_eight_bits(values, name)))


def _eight_bits(values: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Return pixel values as uint8."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    low, high = float(values.min()), float(values.max())
    is_float = values.dtype.kind == "f"
    top = 1 if is_float else 255
    if not (low >= 0 and high <= top):  # NaN fails too
        raise ValueError(f"{name}: pixel values from {low:g} to {high:g}; expected 0 to {top} for {values.dtype}")
    return (values * 255).round().astype(np.uint8) if is_float else values.astype(np.uint8)
