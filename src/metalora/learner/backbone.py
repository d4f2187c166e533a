"""A frozen network with the preparation of its inputs: pictures, texts or arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metalora._util.shown import shown
from metalora._util.suggest import nearest
from metalora.learner.data import (
    ArrayPreprocessor,
    ImagePreprocessor,
    Preprocessor,
    TextPreprocessor,
    timm_preprocessor,
    torchvision_preprocessor,
)
from metalora.learner.data.image_preprocessing import INTERPOLATIONS
from metalora.learner.data.pictures import is_picture_path
from metalora.learner.data.pool import modality_of
from metalora.zoo import LIBRARIES, load_model, load_tokenizer, sentence_encoder

KINDS = {"images": "a picture", "text": "a text", "arrays": "an array"}
TAKES = {"images": "pictures", "text": "texts", "arrays": "arrays"}
MAX_LENGTH = 128  # tokens of a text, if neither the user nor the tokenizer says otherwise


@dataclass
class Backbone:
    """A frozen network and what turns pictures, texts or arrays into its inputs.

    Attributes:
        model: The network, in eval mode.
        preprocessor: Items -> inputs of the network; its `kind` is "images", "text" or "arrays".
        name: The name that `load_backbone` takes, such as "timm:resnet18"; None for a network that the caller built.
    """

    model: nn.Module
    preprocessor: Preprocessor
    name: str | None = None

    def check_inputs(self, items: Sequence[Any]) -> None:
        """Raise a ValueError if the first item is of another kind than the inputs of the network."""
        if not len(items):
            return
        item, kind = items[0], modality_of(items[0])
        expected = self.preprocessor.kind
        is_path = isinstance(item, str) and is_picture_path(item)
        if (expected == "images" and kind == "text" and not is_path) or (expected == "text" and kind != "text"):
            name = self.name or type(self.model).__name__
            raise ValueError(f"input {str(item)[:60]!r} is {KINDS[kind]}, but {name} takes {TAKES[expected]}")


def load_backbone(
    backbone: str | nn.Module | Backbone,
    *,
    preprocessor: Preprocessor | None = None,
    image_size: int | None = None,
    max_length: int | None = None,
) -> Backbone:
    """Load a backbone by name, or find the preparation of the inputs of a network.

    Args:
        backbone: timm:NAME, torchvision:NAME, hf:FOLDER_OR_ID, st:FOLDER_OR_ID (sentence-transformers), minilm,
            efficientnet-lite0; or a network: one of timm or torchvision, a `SentenceTransformer`, any module whose
            first layer is a Linear (inputs are arrays), or any other with a `preprocessor`.
        preprocessor: The preparation of the inputs, instead of the one that belongs to the network.
        image_size: Side of the pictures in pixels, instead of the one that the network was trained with.
        max_length: Longest text in tokens; longer ones are cut.

    Raises:
        ValueError: The name is not known, or the preparation of the inputs cannot be found.

    Example:
        >>> load_backbone(nn.Sequential(nn.Linear(4, 8), nn.ReLU())).preprocessor.kind
        'arrays'
    """
    if isinstance(backbone, Backbone):
        return backbone
    name = backbone if isinstance(backbone, str) else None
    if name is not None:
        model, tokenizer = _load_by_name(name)
    else:
        model, tokenizer = _unwrapped(backbone)
    if preprocessor is None:
        preprocessor = _preprocessor_of(model, tokenizer, name, image_size, max_length)
    if preprocessor.kind == "images":
        model = model.to(memory_format=torch.channels_last)  # EfficientNet-Lite0: half the time a forward on a CPU
    return Backbone(model.eval().requires_grad_(False), preprocessor, name)


def check_no_download(name: str | None, place: object) -> None:
    """Raise a ValueError if the backbone that a file names may be downloaded.

    What is here in any case is read: the bundled minilm and efficientnet-lite0, folders, and an architecture of timm
    with weights from a file (timm:NAME@CHECKPOINT). No code of theirs is run.

    Args:
        name: The name in the file; None passes.
        place: The file or the folder.

    Raises:
        ValueError: The backbone may be downloaded.

    Example:
        >>> check_no_download("hf:some/model", "FOLDER")
        Traceback (most recent call last):
        ValueError: FOLDER: its backbone 'hf:some/model' may be downloaded: pass backbone=..., or allow_download=True
    """
    library, _, rest = (name or "minilm").partition(":")
    architecture, _, checkpoint = rest.partition("@")
    is_file = library == "timm" and bool(checkpoint) and re.fullmatch(r"[\w.]+", architecture) is not None
    is_folder = library in ("hf", "st") and Path(rest).is_dir()
    if not (name in (None, "minilm", "efficientnet-lite0") or is_file or is_folder):
        raise ValueError(
            f"{place}: its backbone {shown(name)} may be downloaded: pass backbone=..., or allow_download=True"
        )


def network_of(backbone: str | nn.Module | Backbone | None) -> nn.Module | None:
    """Return the network of the caller that a load may change; None if the load makes one by its name.

    Example:
        >>> network_of("minilm") is None
        True
    """
    model = backbone.model if isinstance(backbone, Backbone) else backbone
    return model if isinstance(model, nn.Module) else None


def _load_by_name(name: str) -> tuple[nn.Module, Any]:
    """Return the network of a name, and its tokenizer; None for a network that takes no text."""
    library, _, rest = name.partition(":")
    if name == "minilm" or library == "st":
        return sentence_encoder(rest or name)
    if library == "hf":
        return load_model(name), load_tokenizer(rest)
    known = (*LIBRARIES, "st", "minilm")
    if library not in known:
        raise ValueError(f"backbone {name!r}: expected one of {', '.join(known)}{nearest(library, known)}")
    return load_model(name), None


def _unwrapped(model: Any) -> tuple[nn.Module, Any]:
    """Return the network and the tokenizer of a SentenceTransformer; any other network as it is."""
    if any(ancestor.__name__ == "SentenceTransformer" for ancestor in type(model).__mro__):
        return model[0].auto_model, model.tokenizer
    if not isinstance(model, nn.Module):
        raise ValueError(f"backbone: expected a name or a torch.nn.Module, got {type(model).__name__}")
    return model, None


def _preprocessor_of(
    model: nn.Module, tokenizer: Any, name: str | None, image_size: int | None, max_length: int | None
) -> Preprocessor:
    """Return the preparation of inputs that belongs to a network; ValueError if it cannot be found."""
    if tokenizer is not None:
        if hasattr(tokenizer, "image_mean"):
            return _of_image_processor(tokenizer, image_size)
        return TextPreprocessor(tokenizer, max_length or MAX_LENGTH)
    if hasattr(model, "pretrained_cfg"):
        return timm_preprocessor(model, image_size)
    if name is not None and name.startswith("torchvision:"):
        return torchvision_preprocessor(name.removeprefix("torchvision:"), image_size)
    first = next((module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))), None)
    if isinstance(first, nn.Linear):
        return ArrayPreprocessor()
    raise ValueError(
        f"backbone {type(model).__name__}: how its inputs are prepared is not known; pass preprocessor=, such as "
        "metalora.learner.ImagePreprocessor(size=(64, 64), resize=64)"
    )


def _with_size(preprocessor: ImagePreprocessor, size: int | None) -> ImagePreprocessor:
    return preprocessor if size is None else preprocessor.with_size(size)


def _of_image_processor(processor: Any, size: int | None) -> ImagePreprocessor:
    """Return the preparation that an image processor of transformers does."""
    sizes = dict(processor.size)
    resize = sizes.get("shortest_edge") or (sizes["height"], sizes["width"])
    crop = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
    if not crop and not isinstance(resize, int):
        preprocessor = ImagePreprocessor(
            size=resize,
            resize=max(resize),
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
            interpolation=INTERPOLATIONS[int(processor.resample)],
            resize_mode="squash",
        )
        return _with_size(preprocessor, size)
    edge = resize if isinstance(resize, int) else max(resize)
    preprocessor = ImagePreprocessor(
        size=(crop["height"], crop["width"]) if crop else (edge, edge),
        resize=edge,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        interpolation=INTERPOLATIONS[int(processor.resample)],
    )
    return _with_size(preprocessor, size)
