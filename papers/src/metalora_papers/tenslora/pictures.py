"""Pictures of one classification task in the parts train, val and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalora._util.suggest import nearest
from metalora_papers.metalora import image_sources
from metalora_papers.metalora.emoji import load_emoji
from metalora_papers.metalora.image_sources import FOLDER, HUB
from metalora_papers.metalora.labelled_items import MISSING, PARTS

EMOJI = "emoji:"
SPLIT_SEED = 20240229
VAL_SHARE, TEST_SHARE = 0.1, 0.2
VAL_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures.

    Attributes:
        items: Paths, images of PIL, or an array or a tensor of pixels; n of them.
        labels: Numbers of the classes, int64 (n,).
    """

    items: Any
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> Pictures:
        """Return the pictures of some rows, int64 (m,)."""
        if isinstance(self.items, list):
            return Pictures([self.items[row] for row in rows.tolist()], self.labels[rows])
        return Pictures(self.items[rows], self.labels[rows])


@dataclass(frozen=True)
class PictureParts:
    """The parts of a task: name -> pictures, for train, val and test; and the names of its classes."""

    parts: Mapping[str, Pictures]
    class_names: tuple[str, ...]


def load_pictures(data: str, root: str | None = None) -> PictureParts:
    """Load the pictures of a classification task.

    Published parts are kept (DTD's first split, the train and test files of CIFAR). Without a part "val" it is a tenth
    of every class of "train"; what is not parted at all (EuroSAT, a folder of classes) has a fifth of every class as
    "test" first. The draws have a fixed seed.

    Args:
        data: folder:PATH, with a subfolder for each class in PATH/train, PATH/test and perhaps PATH/val, or in PATH;
            dtd, eurosat, cifar10 or cifar100, as torchvision keeps them below `root`; hub:OWNER/NAME or
            hub:OWNER/NAME:LABEL_COLUMN, through `datasets`; emoji:COLUMN, drawings of four vendors.
        root: That folder; the start of a relative PATH; the cache of `datasets`; the folder of the drawings.

    Raises:
        ValueError: An unknown name, or missing or damaged files.
    """
    for prefix, load in PREFIXES.items():
        if data.startswith(prefix):
            return load(data, root)
    if data not in SETS:
        choices = (*SETS, *(f"{prefix}..." for prefix in PREFIXES))
        raise ValueError(f"data {data!r}: expected one of {', '.join(choices)}{nearest(data, SETS)}")
    if root is None:
        raise ValueError(f"data {data!r}: give its folder as data_root; nothing is downloaded")
    return SETS[data](Path(root))


# ---- parts ----------------------------------------------------------------------------------------------------------
def _completed(parts: Mapping[str, Pictures], class_names: tuple[str, ...], data: str) -> PictureParts:
    """Return train, val and test, with what is missing drawn from "train", the same on every machine."""
    found = dict(parts)
    for name, share in (("test", TEST_SHARE), ("val", VAL_SHARE)):
        if name not in found:
            drawn, rest = _drawn(found["train"].labels, share, data, class_names)
            found[name], found["train"] = found["train"].take(drawn), found["train"].take(rest)
    return PictureParts({name: found[name] for name in PARTS}, class_names)


def _drawn(labels: Tensor, share: float, data: str, class_names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Return the rows of a share of every class, at least one of each, and those of the rest."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    drawn = []
    for label, name in enumerate(class_names):
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError(f"{data}: class {name!r} has {len(rows)} pictures to part; two or more are needed")
        drawn.append(rows[torch.randperm(len(rows), generator=generator)][: max(1, round(share * len(rows)))])
    is_drawn = torch.zeros(len(labels), dtype=torch.bool)
    is_drawn[torch.cat(drawn)] = True
    return is_drawn.nonzero()[:, 0], (~is_drawn).nonzero()[:, 0]


# ---- sources --------------------------------------------------------------------------------------------------------
def _folder(data: str, root: str | None) -> PictureParts:
    return _of_folder(Path(root or "", data.removeprefix(FOLDER)), data)


def _of_folder(path: Path, data: str) -> PictureParts:
    """Read a folder of classes, or of parts that are such folders."""
    names = {folder.name for folder in image_sources.subfolders(path)}
    if not names or not names <= {"train", "test", *VAL_NAMES}:
        files, labels, class_names = image_sources.class_files(path)
        return _completed({"train": Pictures(files, labels)}, class_names, data)
    if "train" not in names or len(names & set(VAL_NAMES)) > 1:
        raise ValueError(f"{path}: expected folders train, test and perhaps val, found {', '.join(sorted(names))}")
    by_part, parts = {name: image_sources.class_files(path / name) for name in sorted(names)}, {}
    class_names = by_part["train"][2]
    for name, (files, labels, found) in by_part.items():
        if found != class_names:
            different = ", ".join(sorted(set(found) ^ set(class_names)))
            raise ValueError(f"{path}: all parts must hold the same classes; not in both train and {name}: {different}")
        parts["val" if name in VAL_NAMES else name] = Pictures(files, labels)
    return _completed(parts, class_names, data)


def _dtd(root: Path) -> PictureParts:
    """Read DTD's first official split from its lists of names, such as "banded/banded_0002.jpg"."""
    folder = root / "dtd" / "dtd"  # torchvision unpacks the archive, whose folder is dtd, into a folder dtd
    lists = {part: folder / "labels" / f"{part}1.txt" for part in PARTS}
    missing = [str(path) for path in lists.values() if not path.is_file()]
    if missing:
        raise ValueError(f"dtd: no file {missing[0]}; data_root is the folder that torchvision's DTD has as root")
    lines = {part: path.read_text().split() for part, path in lists.items()}
    class_names = tuple(sorted({line.partition("/")[0] for part in lines.values() for line in part}))
    parts = {
        part: Pictures(
            [folder / "images" / name for name in names],
            torch.tensor([class_names.index(name.partition("/")[0]) for name in names]),
        )
        for part, names in lines.items()
    }
    return PictureParts(parts, class_names)


def _eurosat(root: Path) -> PictureParts:
    return _of_folder(root / "eurosat" / "2750", "eurosat")


def _cifar(data: str) -> Callable[[Path], PictureParts]:
    def load(root: Path) -> PictureParts:
        from torchvision import datasets

        source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[data]
        try:
            train, test = (source(root, train=train, download=False) for train in (True, False))
        except RuntimeError as error:
            raise ValueError(f"{data}: no complete files in {root} ({' '.join(str(error).split())})") from None
        parts = {"train": train, "test": test}
        pictures = {name: Pictures(part.data, torch.tensor(part.targets)) for name, part in parts.items()}
        return _completed(pictures, tuple(train.classes), data)

    return load


def _hub(data: str, root: str | None) -> PictureParts:
    repository, _, column = data.removeprefix(HUB).partition(":")
    tables = image_sources.hub_parts(data, repository, root)
    first = next(iter(tables.values()))
    image, label = image_sources.hub_columns(data, first.features, column)
    if "train" not in tables and len(tables) > 1:
        raise ValueError(f"{data}: expected a part train, found {', '.join(sorted(tables))}")
    wanted = {"train": "train", "test": "test", **dict.fromkeys(VAL_NAMES, "val")}
    if len(tables) == 1:
        wanted = {next(iter(tables)): "train"}
    parts: dict[str, Pictures] = {}
    class_names: Sequence[str] = ()
    for name, table in tables.items():
        if name in wanted:
            labels, class_names = image_sources.hub_labels(data, table, tables, label)
            parts[wanted[name]] = Pictures(list(table[image]), labels)
    return _completed(parts, tuple(class_names), data)


def _emoji(data: str, root: str | None) -> PictureParts:
    items = load_emoji(folder=root)
    column = data.removeprefix(EMOJI)
    if column not in items.notions:
        raise ValueError(f"data {data!r}: no such column of labels{nearest(column, items.notions)}")
    codes, class_names = items.notions[column]
    rows = {part: of_part[codes[of_part] != MISSING] for part, of_part in items.parts.items()}
    assert isinstance(items.inputs, Tensor)
    pixels = items.inputs.permute(0, 3, 1, 2)
    return PictureParts({part: Pictures(pixels[chosen], codes[chosen]) for part, chosen in rows.items()}, class_names)


PREFIXES: dict[str, Callable[[str, str | None], PictureParts]] = {FOLDER: _folder, HUB: _hub, EMOJI: _emoji}
SETS: dict[str, Callable[[Path], PictureParts]] = {
    "dtd": _dtd,
    "eurosat": _eurosat,
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
}
