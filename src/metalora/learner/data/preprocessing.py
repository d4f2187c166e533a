"""What a network takes, made from pictures, texts or arrays as its weights expect them.

A preprocessor works in two steps. `encode` does the slow part for each item, and its small results may be kept;
`collate` makes a batch of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora.learner.data.pictures import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Inputs = Tensor | dict[str, Tensor]
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of PIL's numbers
RESIZE_MODES = ("shortest", "squash")
READERS = 8  # threads that read pictures: Pillow decodes without the lock of the interpreter
DEFAULT_MAX_LENGTH = 256
LONGEST_LENGTH = 1_000_000  # a tokenizer without a limit has a larger number


class Preprocessor(Protocol):
    """What makes the inputs of a network from the items of a pool."""

    kind: ClassVar[str]

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> Inputs:
        """Return the inputs of a network for n items.

        Args:
            items: The items.
            names: How messages call them; None: by their numbers.
        """

    def encode(self, items: Sequence[Any], names: Sequence[str] | None = None) -> list[Tensor]:
        """Return a small tensor for each item, which `collate` takes."""

    def collate(self, encoded: Sequence[Tensor]) -> Inputs:
        """Return the inputs of a network for what `encode` returned."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, which JSON can hold; `preprocessor_from_dict` reads them."""


# ---- pictures -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ImagePreprocessor:
    """Resizes, crops the centre and normalises pictures, as torchvision and timm do in evaluation.

    Attributes:
        size: Height and width of the result, in pixels.
        resize: Length to which the shorter side is resized ("shortest"), or to which both sides are ("squash"). Pixels
            outside of the picture are black.
        mean: Mean of every channel, of values from 0 to 1.
        std: Standard deviation of every channel.
        interpolation: "bilinear", "bicubic", "nearest", "lanczos", "box" or "hamming".
        resize_mode: "shortest" keeps the proportions, "squash" does not.

    Raises:
        ValueError: A setting has an impossible value.

    Example:
        >>> preprocess = ImagePreprocessor(size=(8, 8), resize=10)
        >>> preprocess([np.zeros((20, 30, 3), dtype=np.uint8)]).shape
        torch.Size([1, 3, 8, 8])
    """

    size: tuple[int, int]
    resize: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    resize_mode: str = "shortest"
    kind: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("resize mode", self.resize_mode, RESIZE_MODES)
        if min(*self.size, self.resize) < 1:
            raise ValueError(f"size {self.size}, resize {self.resize}: expected at least one pixel")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std}: expected positive numbers")

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> Tensor:
        """Return pictures as (n, 3, height, width) float32.

        Raises:
            ValueError: A picture cannot be read; the message names its file, or its name or number.
        """
        return self.collate(self.encode(items, names))

    def encode(self, items: Sequence[Any], names: Sequence[str] | None = None) -> list[Tensor]:
        """Return the resized and cropped pictures, (3, height, width) uint8 each.

        Raises:
            ValueError: A picture cannot be read.
        """
        names = _names(items, names, "picture")
        if len(items) < READERS:
            return [self._encode(item, name) for item, name in zip(items, names, strict=True)]
        with ThreadPoolExecutor(READERS) as readers:
            return list(readers.map(self._encode, items, names))

    def collate(self, encoded: Sequence[Tensor]) -> Tensor:
        """Return normalised pictures, (n, 3, height, width) float32."""
        pixels = encoded if isinstance(encoded, Tensor) else torch.stack(list(encoded))
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return pixels.float().div_(255).sub_(mean).div_(std)

    def with_size(self, size: int | tuple[int, int]) -> ImagePreprocessor:
        """Return the same preparation for another size; the share of a picture that the crop leaves stays.

        Args:
            size: Height and width in pixels, or both at once.

        Example:
            >>> ImagePreprocessor(size=(224, 224), resize=256).with_size(96).resize
            109
        """
        height_and_width = (size, size) if isinstance(size, int) else tuple(size)
        resize = math.floor(max(height_and_width) * self.resize / max(self.size))
        settings = self.to_dict() | {"size": height_and_width, "resize": resize}
        return ImagePreprocessor.from_dict(settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, which JSON can hold."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> ImagePreprocessor:
        """Return the preprocessor that has these settings."""
        values = {name: value for name, value in settings.items() if name != "kind"}
        for name in ("size", "mean", "std"):
            values[name] = tuple(values[name])
        return cls(**values)

    def _encode(self, item: Any, name: str) -> Tensor:
        picture = self._resized(open_picture(item, name))
        cropped = _centre_crop(picture, self.size)
        pixels = torch.from_numpy(np.array(cropped))  # (height, width, 3)
        return pixels.permute(2, 0, 1).contiguous()

    def _resized(self, picture: Image) -> Image:
        width, height = picture.size
        if self.resize_mode == "squash":
            target = (self.resize, self.resize)
        elif width <= height:
            target = (self.resize, int(self.resize * height / width))
        else:
            target = (int(self.resize * width / height), self.resize)
        if target == picture.size:
            return picture
        return picture.resize(target, INTERPOLATIONS.index(self.interpolation))


def timm_preprocessor(model: Any, size: int | None = None) -> ImagePreprocessor:
    """Return the preparation that a model of timm was trained for.

    Args:
        model: The model, which knows its configuration.
        size: Another height and width in pixels, such as a smaller one for speed.

    Raises:
        ValueError: The configuration asks for something that is not supported, such as a border around pictures.
        ModuleNotFoundError: timm is not installed.

    Example:
        >>> import timm
        >>> timm_preprocessor(timm.create_model("resnet18")).resize
        235
    """
    from timm.data import resolve_data_config

    config = resolve_data_config(model=model)
    if config["input_size"][0] != 3:
        raise ValueError(f"the model takes {config['input_size'][0]} channels; pictures have 3")
    modes = {"center": "shortest", "squash": "squash"}
    check_choice("crop mode of timm", config["crop_mode"], tuple(modes))
    height_and_width = tuple(config["input_size"][1:])
    if len(set(height_and_width)) > 1:
        raise ValueError(f"the model takes {height_and_width} pixels; only squares are supported")
    preprocessor = ImagePreprocessor(
        size=height_and_width,
        resize=math.floor(max(height_and_width) / config["crop_pct"]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize_mode=modes[config["crop_mode"]],
    )
    return preprocessor if size is None else preprocessor.with_size(size)


def torchvision_preprocessor(name: str, size: int | None = None) -> ImagePreprocessor:
    """Return the preparation of the default weights of a model of torchvision.

    Args:
        name: Name of the model, such as "resnet18".
        size: Another height and width in pixels, such as a smaller one for speed.

    Raises:
        ValueError: The model is not one that classifies images.
        ModuleNotFoundError: torchvision is not installed.

    Example:
        >>> torchvision_preprocessor("resnet18").size
        (224, 224)
    """
    import torchvision

    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    if not hasattr(transforms, "crop_size") or len(transforms.mean) != 3:
        raise ValueError(f"torchvision:{name}: not a model that classifies images")
    (crop,) = transforms.crop_size
    (resize,) = transforms.resize_size
    preprocessor = ImagePreprocessor(
        size=(crop, crop),
        resize=resize,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )
    return preprocessor if size is None else preprocessor.with_size(size)


def _centre_crop(picture: Image, size: tuple[int, int]) -> Image:
    """Cut out the centre, with black pixels where the picture is smaller; the same rounding as in torchvision."""
    height, width = size
    missing_width = max(width - picture.width, 0)
    missing_height = max(height - picture.height, 0)
    if missing_width or missing_height:
        left, top = missing_width // 2, missing_height // 2
        right, bottom = picture.width + (missing_width + 1) // 2, picture.height + (missing_height + 1) // 2
        picture = picture.crop((-left, -top, right, bottom))  # PIL fills with black
        if picture.size == (width, height):
            return picture
    left = round((picture.width - width) / 2)
    top = round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


# ---- texts ----------------------------------------------------------------------------------------------------------
class TextPreprocessor:
    """Tokenises texts, cuts them off at a number of tokens and pads them to the longest of a batch.

    Args:
        tokenizer: A tokenizer of transformers.
        max_length: The largest number of tokens; at most what the tokenizer allows.

    Raises:
        ValueError: `max_length` is smaller than the number of special tokens and one more.

    Example:
        >>> from metalora_papers.metatt.text import load_encoder  # doctest: +SKIP
        >>> TextPreprocessor(load_encoder("minilm")[1])(["A cat.", "A"])["input_ids"].shape  # doctest: +SKIP
        torch.Size([2, 5])
    """

    kind: ClassVar[str] = "text"

    def __init__(self, tokenizer: Any, max_length: int = DEFAULT_MAX_LENGTH):
        limit = getattr(tokenizer, "model_max_length", None) or LONGEST_LENGTH
        special_tokens = tokenizer.num_special_tokens_to_add()
        if max_length <= special_tokens:
            raise ValueError(f"max_length {max_length}: expected more than the {special_tokens} special tokens")
        self.tokenizer = tokenizer
        self.max_length = min(max_length, limit)

    def __call__(self, items: Sequence[Any], names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return token numbers and the mask of the tokens that count, (n, tokens) int64 each.

        Raises:
            ValueError: A text is empty or not a text; the message has its name or number.
        """
        return self.collate(self.encode(items, names))

    def encode(self, items: Sequence[Any], names: Sequence[str] | None = None) -> list[Tensor]:
        """Return the token numbers of every text, (tokens,) int32 each.

        Raises:
            ValueError: A text is empty or not a text.
        """
        names = _names(items, names, "text")
        for item, name in zip(items, names, strict=True):
            if not isinstance(item, str):
                raise ValueError(f"{name}: a {type(item).__name__}, expected a text")
            if not item.strip():
                raise ValueError(f"{name}: the text is empty")
        encoded = self.tokenizer(list(items), truncation=True, max_length=self.max_length, padding=False)
        return [torch.tensor(ids, dtype=torch.int32) for ids in encoded["input_ids"]]

    def collate(self, encoded: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return token numbers and the mask of the tokens that count, (n, tokens) int64 each."""
        longest = max(len(ids) for ids in encoded)
        input_ids = torch.full((len(encoded), longest), self._padding_token(), dtype=torch.int64)
        mask = torch.zeros((len(encoded), longest), dtype=torch.int64)
        pads_left = self.tokenizer.padding_side == "left"
        for row, ids in enumerate(encoded):
            place = slice(longest - len(ids), None) if pads_left else slice(0, len(ids))
            input_ids[row, place] = ids.long()
            mask[row, place] = 1
        return {"input_ids": input_ids, "attention_mask": mask}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, which JSON can hold; the tokenizer is not among them, see `save_tokenizer`."""
        return {"kind": self.kind, "max_length": self.max_length}

    def save_tokenizer(self, folder: str | Path) -> None:
        """Write the files of the tokenizer to a folder, from which `preprocessor_from_dict` reads them."""
        self.tokenizer.save_pretrained(folder)

    def _padding_token(self) -> int:
        """Return a token number for the padding, which the mask hides."""
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0


# ---- arrays ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ArrayPreprocessor:
    """Passes arrays to the network as they are, as float32.

    Example:
        >>> ArrayPreprocessor()([[1, 2], [3, 4]])
        tensor([[1., 2.],
                [3., 4.]])
    """

    kind: ClassVar[str] = "arrays"

    def __call__(self, items: Any, names: Sequence[str] | None = None) -> Tensor:
        """Return items (n, ...) as one tensor, (n, ...) float32.

        Raises:
            ValueError: An item has another shape than the first, or a value is not a finite number.
        """
        return self.collate(self.encode(items, names))

    def encode(self, items: Any, names: Sequence[str] | None = None) -> list[Tensor]:
        """Return every item as a tensor of float32.

        Raises:
            ValueError: An item has another shape than the first, or a value is not a finite number.
        """
        names = _names(items, names, "item")
        encoded = [_as_numbers(item, name) for item, name in zip(items, names, strict=True)]
        for values, name in zip(encoded, names, strict=True):
            if values.shape != encoded[0].shape:
                raise ValueError(
                    f"{name}: the shape is {tuple(values.shape)}, that of {names[0]} is {tuple(encoded[0].shape)}"
                )
        return encoded

    def collate(self, encoded: Sequence[Tensor]) -> Tensor:
        """Return the items as one tensor, (n, ...) float32."""
        return encoded if isinstance(encoded, Tensor) else torch.stack(list(encoded))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, which JSON can hold."""
        return {"kind": self.kind}


def _as_numbers(item: Any, name: str) -> Tensor:
    try:
        values = torch.as_tensor(item).detach().to("cpu", torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: a {type(item).__name__} is not an array of numbers") from None
    if not values.isfinite().all():
        raise ValueError(f"{name}: a value is NaN or infinite")
    return values


# ---- all ------------------------------------------------------------------------------------------------------------
def preprocessor_from_dict(settings: Mapping[str, Any], folder: str | Path | None = None) -> Preprocessor:
    """Return the preprocessor that has these settings.

    Args:
        settings: What `to_dict` returned.
        folder: The folder with the files of the tokenizer, for texts.

    Raises:
        ValueError: The kind is unknown, or the tokenizer of texts is not in the folder.

    Example:
        >>> preprocess = ImagePreprocessor(size=(64, 64), resize=64)
        >>> preprocessor_from_dict(preprocess.to_dict()) == preprocess
        True
    """
    check_choice("preprocessor", settings["kind"], ("images", "text", "arrays"))
    if settings["kind"] == "images":
        return ImagePreprocessor.from_dict(settings)
    if settings["kind"] == "arrays":
        return ArrayPreprocessor()
    if folder is None:
        raise ValueError("a preprocessor of texts needs the folder of its tokenizer")
    return TextPreprocessor(_load_tokenizer(Path(folder)), settings["max_length"])


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no tokenizer that can be loaded ({str(error).splitlines()[0]})") from None


def _names(items: Sequence[Any], names: Sequence[str] | None, what: str) -> Sequence[str]:
    if not len(items):
        raise ValueError(f"there is no {what}")
    return [f"{what} {number}" for number in range(1, len(items) + 1)] if names is None else names
