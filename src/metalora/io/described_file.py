"""Safetensors files whose header holds a versioned description as JSON: adapters and tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from metalora._util.digest import tensor_digest, typed_label
from metalora._util.shown import cut, shown

Schema = Any
"""A type, a tuple of types, [the schema of every item], or a mapping from names to schemas: "NAME?" may be missing, and
"*" stands for any name."""
NOUNS = {dict: "a mapping", list: "a list", str: "a text", int: "an integer", type(None): "null", bool: "true or false"}
WHOLE = "the description"
NUMPY_DTYPES = (torch.float16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64)


def checksum(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a description (without its own entry "sha256") and of tensors by name."""
    described = {key: value for key, value in description.items() if key != "sha256"}
    labelled = ((typed_label(name, tensors[name]), tensors[name]) for name in sorted(tensors))
    return tensor_digest(labelled, prefix=json.dumps(described, sort_keys=True))


def header_of(content: bytes) -> dict[str, Any]:
    """Return the JSON header of a safetensors file: 8 bytes of length, then the JSON."""
    size = int.from_bytes(content[:8], "little")
    return cast("dict[str, Any]", json.loads(content[8 : 8 + size]))


def description_in(content: bytes) -> dict[str, Any]:
    """Return what this library wrote into the header of a safetensors file; empty if another program wrote it."""
    try:
        description = json.loads(header_of(content)["__metadata__"]["metalora"])
    except (ValueError, KeyError, TypeError):
        return {}
    return description if isinstance(description, dict) else {}


def parse_described(
    path: str | Path, content: bytes, file_format: str, version: int, noun: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a file that has been read.

    Args:
        path: Where it was read, for messages.
        content: Its bytes.
        file_format: The format that the description must name.
        version: The version of the format that this library reads.
        noun: What messages call the file, such as "adapter file".

    Raises:
        ValueError: The file is damaged, changed after it was written, or of another format or version.
    """
    try:
        tensors = load_tensors(content)
        description = json.loads(header_of(content)["__metadata__"]["metalora"])
    except KeyError:  # of another program
        raise ValueError(f"{path}: not a {file_format} file: metalora has not written it") from None
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a complete {noun} (truncated or damaged: {cut(str(error))})") from None
    if not isinstance(description, dict) or description.get("format") != file_format:
        raise ValueError(f"{path}: not a {file_format} file")
    if description.get("version") != version:
        raise ValueError(
            f"{path}: version {shown(description.get('version'))} of the format, this library reads {version}"
        )
    if checksum(description, tensors) != description.get("sha256"):
        raise ValueError(f"{path}: does not match its checksum: the file was changed after it was written")
    return description, tensors


def check_entries(values: Any, schema: Schema, place: str) -> None:
    """Check the types of the entries of a description before anything uses them.

    Args:
        values: The description, or a part of it.
        schema: What it has to be; further entries are allowed.
        place: What messages call it, such as the path of its file.

    Raises:
        ValueError: An entry is missing, or it is of another type.

    Example:
        >>> check_entries({"name": "lora"}, {"name": str, "rank?": int}, "file")
        >>> check_entries({"name": "lora", "rank": "2"}, {"name": str, "rank?": int}, "file")
        Traceback (most recent call last):
        ValueError: file: rank is '2', expected an integer
    """
    _check_entry(values, schema, place, WHOLE)


def _check_entry(value: Any, schema: Schema, place: str, name: str) -> None:
    kinds = schema if isinstance(schema, tuple) else (schema if isinstance(schema, type) else type(schema),)
    if type(value) not in kinds:
        raise ValueError(f"{place}: {name} is {shown(value)}, expected {' or '.join(NOUNS[kind] for kind in kinds)}")
    if isinstance(schema, list):
        for item in value:
            _check_entry(item, schema[0], place, f"an item of {name}")
    elif isinstance(schema, dict):
        prefix = "" if name == WHOLE else f"{name}."
        for key in schema.keys() - {"*"}:
            if not key.endswith("?") and key not in value:
                raise ValueError(f"{place}: not complete, it has no {prefix + key!r}")
        for key, item in value.items():
            inner = schema.get(key, schema.get(f"{key}?", schema.get("*")))
            if inner is not None:
                _check_entry(item, inner, place, prefix + cut(key))


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError if a number of a file is NaN or infinite.

    Example:
        >>> check_finite({"A": torch.tensor([1.0, torch.inf])}, "file")
        Traceback (most recent call last):
        ValueError: file: 'A' has numbers that are not finite
    """
    for name, value in tensors.items():
        if not is_finite(value):
            raise ValueError(f"{path}: {cut(name)!r} has numbers that are not finite")


def is_finite(tensor: Tensor) -> bool:
    """Return whether no number of a tensor is NaN or infinite; for a small one numpy takes a third of torch's time.

    Example:
        >>> is_finite(torch.zeros(2, dtype=torch.bfloat16)), is_finite(torch.tensor([0.0, torch.nan]))
        (True, False)
    """
    numbers = tensor.detach().cpu()
    if numbers.dtype not in NUMPY_DTYPES:
        numbers = numbers.float()
    return bool(np.isfinite(numbers.numpy()).all())
