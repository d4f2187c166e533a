"""The network of condition source "extractor": its name, and images as it takes them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora._util.sending import sent
from metalora._util.shown import shown
from metalora.adapters.conditioning.features import Inputs, image_size_of
from metalora.config import ConditionConfig
from metalora.zoo import load_model

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".safetensors")
INTERPOLATIONS = ("bilinear", "bicubic")  # those of timm that torch computes on tensors with antialiasing


def load_extractor(name: str | None) -> nn.Module:
    """Load the network that `condition.extractor` names.

    Args:
        name: NAME or timm:NAME of a timm model, NAME@CHECKPOINT or timm:NAME@CHECKPOINT for weights from a file, or
            efficientnet-lite0.

    Raises:
        ValueError: There is no name, it is not known, or its weights cannot be read.

    Example:
        >>> load_extractor("weights.pth")
        Traceback (most recent call last):
        ValueError: condition.extractor 'weights.pth': a checkpoint does not say its architecture: NAME@weights.pth
    """
    if name is None:
        raise ValueError(
            "condition source 'extractor' needs condition.extractor (a timm name) or attach(extractor=...)"
        )
    library, _, rest = name.partition(":")
    if name != "efficientnet-lite0" and library != "timm":
        library, rest = "timm", name
    if "@" not in rest and Path(rest).suffix in CHECKPOINT_SUFFIXES:
        raise ValueError(f"condition.extractor {name!r}: a checkpoint does not say its architecture: NAME@{rest}")
    try:
        return load_model(f"{library}:{rest}" if rest else library)
    except ValueError as error:
        raise ValueError(f"condition.extractor {name!r}: {error}") from None


def check_no_download(condition: ConditionConfig, place: str | Path, remedy: str = "allow_download=True") -> None:
    """Raise a ValueError if the extractor that a file names would be downloaded.

    What is here in any case is read: the bundled efficientnet-lite0, and an architecture of timm with weights from a
    file (NAME@CHECKPOINT), of which no code is run. A name such as hf-hub:... lets the Hub choose the architecture.

    Args:
        condition: The condition, as the file has it.
        place: The file.
        remedy: What allows the download, for the message.

    Raises:
        ValueError: The extractor would be downloaded.

    Example:
        >>> check_no_download(ConditionConfig(source="extractor", extractor="timm:resnet18"), "FILE")
        Traceback (most recent call last):
        ValueError: FILE: its extractor 'timm:resnet18' may be downloaded: pass extractor=..., or allow_download=True
    """
    name = condition.extractor
    if condition.source != "extractor" or name is None or name == "efficientnet-lite0":
        return
    architecture, _, checkpoint = name.removeprefix("timm:").partition("@")
    if not checkpoint or not re.fullmatch(r"[\w.]+", architecture):
        raise ValueError(f"{place}: its extractor {shown(name)} may be downloaded: pass extractor=..., or {remedy}")


@dataclass(frozen=True)
class ImageConversion:
    """Turns images as the backbone takes them into images as the extractor takes them.

    y = scale * x + shift for every channel, then a resize of both sides.

    Attributes:
        scale: One number for each channel; empty: the values stay.
        shift: One number for each channel.
        size: Height and width of the result; None: those of the image.
        interpolation: "bilinear" or "bicubic", of the resize.

    Example:
        >>> import torch
        >>> ImageConversion(scale=(2.0,), shift=(-1.0,))(torch.ones(1, 1, 2, 2)).unique()
        tensor([1.])
    """

    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    interpolation: str = "bicubic"

    def __call__(self, inputs: Inputs) -> Inputs:
        """Return converted images; inputs other than a tensor (n, channels, height, width) are returned as they are."""
        if not isinstance(inputs, Tensor) or inputs.ndim != 4:
            return inputs
        images = inputs
        if self.scale:
            numbers = sent(torch.tensor([self.scale, self.shift], dtype=images.dtype), images.device)
            scale, shift = numbers[:, :, None, None]
            images = images * scale + shift
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode=self.interpolation, antialias=True)
        return images


def image_conversion(backbone: nn.Module, extractor: nn.Module, condition: ConditionConfig) -> ImageConversion:
    """Return what turns images of a backbone into those of an extractor.

    With the statistics (m, s) of the backbone and (n, t) of the extractor, y = ((s x + m) - n) / t.

    Args:
        backbone: The network that the adapter is for; a model of timm states its mean and standard deviation.
        extractor: The network that makes the features, likewise.
        condition: Its `image_mean` and `image_std` take the place of what the backbone states, its `image_size` that of
            a size of the extractor that is not fixed.

    Raises:
        ValueError: `image_mean` or `image_std` is missing, is not of the right length, or has no effect; `image_size`
            is not the fixed size of the extractor.

    Example:
        >>> from types import SimpleNamespace
        >>> plain, half = ({"mean": (m,), "std": (s,)} for m, s in ((0.0, 1.0), (0.5, 0.5)))
        >>> backbone, extractor = SimpleNamespace(pretrained_cfg=plain), SimpleNamespace(pretrained_cfg=half)
        >>> conversion = image_conversion(backbone, extractor, ConditionConfig(source="extractor"))
        >>> conversion.scale, conversion.shift
        ((2.0,), (-1.0,))
    """
    taken = _stated(extractor)
    size, interpolation = _size(extractor, taken, condition.image_size), taken.get("interpolation")
    mode = interpolation if interpolation in INTERPOLATIONS else "bicubic"
    theirs, ours = _statistics(taken), _of_condition(condition) or _statistics(_stated(backbone))
    if theirs is None:
        if condition.image_mean is not None:
            raise ValueError(
                "condition.image_mean has no effect: "
                f"the extractor {type(extractor).__name__} does not state mean and std of its images"
            )
        return ImageConversion(size=size, interpolation=mode)
    if ours is None:
        warnings.warn(
            f"{type(backbone).__name__} does not state how its images are normalised, so the extractor "
            f"{type(extractor).__name__} gets them as they are: set condition.image_mean and condition.image_std",
            stacklevel=2,
        )
        return ImageConversion(size=size, interpolation=mode)
    (mean, std), (their_mean, their_std) = ours, theirs
    if len(mean) != len(their_mean):
        raise ValueError(f"images of the backbone have {len(mean)} channels, those of the extractor {len(their_mean)}")
    scale = tuple(s / t for s, t in zip(std, their_std, strict=True))
    shift = tuple((m - n) / t for m, n, t in zip(mean, their_mean, their_std, strict=True))
    return ImageConversion(scale, shift, size, mode)


def _stated(network: nn.Module) -> dict[str, Any]:
    """Return what a model of timm states about its images; nothing for another network."""
    return getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}


def _statistics(stated: dict[str, Any]) -> tuple[Sequence[float], Sequence[float]] | None:
    return (stated["mean"], stated["std"]) if "mean" in stated and "std" in stated else None


def _of_condition(condition: ConditionConfig) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return the statistics that the user set; ValueError if they cannot be statistics of images."""
    mean, std = condition.image_mean, condition.image_std
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != len(std):
        raise ValueError(
            "condition.image_mean and condition.image_std: expected a number for each channel in both, "
            f"got {mean} and {std}"
        )
    return mean, std


def _size(network: nn.Module, stated: dict[str, Any], wanted: int | None) -> tuple[int, int] | None:
    """Return the height and width of the images of a network; None if they stay as they are."""
    asked = None if wanted is None else (wanted, wanted)
    if not stated.get("fixed_input_size"):
        return asked
    # A network may have been built for another size than that of its weights.
    height, width = image_size_of(network) or stated["input_size"][1:]
    if asked not in (None, (height, width)):
        raise ValueError(
            f"condition.image_size {wanted}: the extractor {type(network).__name__} takes {height}x{width} only"
        )
    return height, width
