"""Files of tensors that somebody else made: safetensors, and PyTorch's own format read as weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_safetensors
from torch import Tensor

from metalora._util.reading import read_regular
from metalora._util.shown import cut, shown

PICKLED = (".bin", ".pt", ".pth", ".ckpt")  # ends of the names of files in PyTorch's own format
UNREADABLE = (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError)
"""What a damaged file raises: a type that torch does not have is a KeyError, an impossible shape a RuntimeError."""


def read_tensors(path: Path, missing: str) -> dict[str, Tensor]:
    """Read a file of tensors; no code in it is run.

    Args:
        path: The file: PyTorch's format if its name ends in .bin, .pt, .pth or .ckpt, otherwise safetensors.
        missing: The message of the error if the file does not exist.

    Returns:
        Name -> tensor, in the shape and the dtype of the file, on the CPU.

    Raises:
        ValueError: The file does not exist, is damaged, or holds something other than named tensors.

    Example:
        >>> read_tensors(Path("no-such-file"), "no such file")
        Traceback (most recent call last):
        ValueError: no such file
    """
    try:
        content = read_regular(path)
    except FileNotFoundError:
        raise ValueError(missing) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return _load_pickled(content) if path.suffix in PICKLED else load_safetensors(content)
    except UNREADABLE as error:
        problem = "not a file of weights alone" if path.suffix in PICKLED else "truncated or damaged"
        raise ValueError(f"{path}: {problem} ({cut(' '.join(str(error).split()))})") from None


def _load_pickled(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a file in PyTorch's format; ValueError for anything that is no plain dense tensor."""
    try:
        values: Any = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types for a damaged file
        raise ValueError(str(error)) from None
    if not isinstance(values, dict):
        raise ValueError(f"a {type(values).__name__}, expected a mapping of names to tensors")
    for name, value in values.items():
        is_plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout == torch.strided
        if not isinstance(name, str) or not is_plain or value.is_meta or value.is_quantized:
            raise ValueError(f"{shown(name)} is no plain tensor")
        # A few bytes can stand for a tensor of any size if all its entries are one number of the file.
        if value.numel() * value.element_size() > len(content):
            raise ValueError(f"{shown(name)} of shape {tuple(value.shape)} is larger than the file")
    return {name: value.detach() for name, value in values.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a safetensors file that `read_tensors` has read says of itself, name -> text; otherwise nothing."""
    if path.suffix in PICKLED:
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def check_numbers(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError unless all tensors of a file hold finite floating-point numbers.

    Example:
        >>> check_numbers({"lora_A": torch.tensor([float("nan")])}, "lora.safetensors")
        Traceback (most recent call last):
        ValueError: lora.safetensors: 'lora_A' has numbers that are not finite
    """
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{path}: {shown(name)} is of {value.dtype}, expected floating-point numbers")
        if not value.float().isfinite().all():  # `float` also for the types of 8 bits, which have no `isfinite`
            raise ValueError(f"{path}: {shown(name)} has numbers that are not finite")
