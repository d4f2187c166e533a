"""Pictures as a network takes them, with the settings of timm and torchvision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora.learner.data.item_names import item_names
from metalora.learner.data.pictures import open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of PIL's numbers
RESIZE_MODES = ("shortest", "squash")
READERS = 8  # threads that read pictures: Pillow decodes without the lock of the interpreter


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
        names = item_names(items, names, "picture")
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
