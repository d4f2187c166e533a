"""Safetensors files whose header holds a versioned description as JSON: adapters and tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from metalora._util.digest import tensor_digest, typed_label


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
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a complete {noun} (truncated or damaged: {error})") from None
    if not isinstance(description, dict) or description.get("format") != file_format:
        raise ValueError(f"{path}: not a {file_format} file")
    if description.get("version") != version:
        raise ValueError(f"{path}: version {description.get('version')!r} of the format, this library reads {version}")
    if checksum(description, tensors) != description.get("sha256"):
        raise ValueError(f"{path}: does not match its checksum: the file was changed after it was written")
    return description, tensors
