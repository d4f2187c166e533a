"""One file with other files, small enough to travel with a checkout; they come out of it bit for bit.

Two kinds of files need most of the room. Of a file of drawings the pictures are stored as lossless WebP. Of a file of
weights the first bytes of all numbers come first, then the second ones: those that hold the exponents are much alike.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metalora._util.files import write_atomically
from metalora_papers.learner.card.pictures import PackedPictures, packed_pictures, unpacked_pictures

DESCRIPTION = "description.json"
PICTURES = "images"  # name of the tensor with the pictures in a file of drawings
FLOAT_BYTES = 4
LENGTH_BYTES = 8  # of the length of a safetensors header, at the start of the file


def pack(files: Mapping[str, Path], archive: Path) -> None:
    """Write an archive.

    Args:
        files: Name in the archive, such as "cache/emoji/google-16.0.0.safetensors" -> the file. A safetensors file
            has pictures (n, side, side, 3), uint8, as its tensor "images".
        archive: The archive.

    Raises:
        ValueError: The archive cannot be written.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        described = {name: _add(target, name, path.read_bytes()) for name, path in files.items()}
        target.writestr(DESCRIPTION, json.dumps(described))
    archive.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(archive, stream.getvalue())


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of an archive into a folder.

    Args:
        archive: The archive.
        folder: The folder.

    Raises:
        ValueError: The archive is damaged, or a file does not come out as it went in.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            described = json.loads(source.read(DESCRIPTION))
            for name, facts in described.items():
                _write(folder, name, _content(source, name, facts), facts["sha256"])
    except (zipfile.BadZipFile, lzma.LZMAError, KeyError, OSError) as error:
        raise ValueError(f"{archive}: cannot be unpacked ({error}); write it again: make gpu-emoji-data") from error


# ---- one file -------------------------------------------------------------------------------------------------------
def _add(target: zipfile.ZipFile, name: str, content: bytes) -> dict[str, Any]:
    """Add a file to an archive, and return what is needed to read it."""
    facts: dict[str, Any] = {"sha256": hashlib.sha256(content).hexdigest()}
    if name.endswith(".safetensors"):
        start, shape = _place_of_pictures(content)
        end = start + int(np.prod(shape))
        packed = packed_pictures(np.frombuffer(content[start:end], np.uint8).reshape(shape))
        facts |= {"start": start, "side": shape[1], "changed": packed.changed}
        facts |= {"plain": len(packed.plain), "changes": len(packed.changes)}
        for kind in ("plain", "changes"):
            for number, column in enumerate(getattr(packed, kind)):
                target.writestr(f"{name}/{kind}-{number}.webp", column)
        content = content[:start] + content[end:]
    target.writestr(f"{name}/rest", lzma.compress(_by_byte(content)))
    return facts


def _content(source: zipfile.ZipFile, name: str, facts: Mapping[str, Any]) -> bytes:
    """Return the content of a file in an archive."""
    content = _by_number(lzma.decompress(source.read(f"{name}/rest")))
    if "start" not in facts:
        return content
    columns = {
        kind: [source.read(f"{name}/{kind}-{number}.webp") for number in range(facts[kind])]
        for kind in ("plain", "changes")
    }
    pictures = unpacked_pictures(PackedPictures(facts["changed"], **columns), facts["side"])
    start = facts["start"]
    return content[:start] + pictures.tobytes() + content[start:]


def _write(folder: Path, name: str, content: bytes, digest: str) -> None:
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise ValueError(f"{name}: a file of an archive lies outside of its folder")
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{name}: does not come out of the archive as it went in; write it again: make gpu-emoji-data")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _place_of_pictures(content: bytes) -> tuple[int, tuple[int, ...]]:
    """Return the offset of the pictures in a safetensors file, and their shape."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    tensor = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])[PICTURES]
    return LENGTH_BYTES + length + tensor["data_offsets"][0], tuple(tensor["shape"])


# ---- bytes of numbers -----------------------------------------------------------------------------------------------
def _by_byte(content: bytes) -> bytes:
    """Return all first bytes of numbers of four bytes, then all second ones, and so on; a rest comes last."""
    end = len(content) // FLOAT_BYTES * FLOAT_BYTES
    planes = np.frombuffer(content[:end], np.uint8).reshape(-1, FLOAT_BYTES).T
    return planes.tobytes() + content[end:]


def _by_number(content: bytes) -> bytes:
    """Undo `_by_byte`."""
    end = len(content) // FLOAT_BYTES * FLOAT_BYTES
    planes = np.frombuffer(content[:end], np.uint8).reshape(FLOAT_BYTES, -1).T
    return planes.tobytes() + content[end:]
