"""The pictures of the demo: emoji of two vendors if npm's registry can be reached, otherwise drawn digits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.attributes import AttributeImages
from metalora_papers.metalora.emoji import load_emoji
from metalora_papers.metalora.emoji_packages import fetch_emoji
from metalora_papers.metalora.labelled_items import LabelledItems

SOURCES = ("auto", "emoji", "mnist-5k")
VENDORS = ("google", "twitter")
DIGITS, FURTHER_DIGITS = 3000, 600  # pictures to train on, and to adapt and predict
NEVER_TRAINED_OF_DIGITS = ("position", "scale", "noise")
GROUP = "group"
Picture = np.ndarray[Any, Any]
Label = str | int | None


@dataclass(frozen=True)
class DemoPictures:
    """Pictures with several columns of labels, as a user has them.

    Attributes:
        name: What the pictures are.
        table: The table to train on: "image", the columns of labels, and "group".
        never_trained: The columns that are not trained on.
        shown: The column whose task the demo adapts to; it is one of `never_trained`.
        further: A table of the same columns with further pictures. No group is in both tables.
    """

    name: str
    table: Mapping[str, Sequence[Any]]
    never_trained: tuple[str, ...]
    shown: str
    further: Mapping[str, Sequence[Any]]


def load_demo_pictures(source: str) -> DemoPictures:
    """Load the pictures of the demo.

    Args:
        source: "emoji", "mnist-5k", or "auto": the emoji, or digits if they cannot be fetched, and then a line says so.

    Raises:
        ValueError: The source is not known, or the emoji cannot be fetched.
    """
    check_choice("data", source, SOURCES)
    if source == "mnist-5k":
        return _digits()
    try:
        fetch_emoji(VENDORS)
    except ValueError as error:
        if source == "emoji":
            raise
        print(f"digits instead of emoji: {error}")
        return _digits()
    return _emoji(load_emoji(VENDORS))


def _emoji(items: LabelledItems) -> DemoPictures:
    return DemoPictures(
        name=f"emoji of {' and '.join(VENDORS)}",
        table=_table_of_part(items, "train"),
        never_trained=items.never_trained,
        shown="skin",
        further=_table_of_part(items, "test"),
    )


def _table_of_part(items: LabelledItems, part: str) -> dict[str, list[Any]]:
    columns = (*items.trained, *items.never_trained)
    pool = items.task_pool(part, columns)
    assert pool.groups is not None
    return {
        "image": _arrays(pool.inputs.permute(0, 2, 3, 1)),
        **{name: pool.columns[name].values() for name in columns},
        GROUP: pool.groups.tolist(),
    }


def _digits() -> DemoPictures:
    images = AttributeImages("mnist-5k")
    return DemoPictures(
        name="drawn digits",
        table=_table_of_digits(images, "train", DIGITS),
        never_trained=NEVER_TRAINED_OF_DIGITS,
        shown="position",
        further=_table_of_digits(images, "test", FURTHER_DIGITS),
    )


def _table_of_digits(images: AttributeImages, split: str, count: int) -> dict[str, list[Any]]:
    batch = images.batch(split, count, seed=0)
    pixels = (batch.images.clamp(0, 1) * 255).round().byte()
    columns = {name: values.tolist() for name, values in batch.values.items()}
    return {"image": _arrays(pixels.permute(0, 2, 3, 1)), **columns, GROUP: batch.ids.tolist()}


def _arrays(pixels: Tensor) -> list[Picture]:
    """Return pictures (n, height, width, 3) as a list of arrays."""
    return list(pixels.contiguous().numpy())


@dataclass(frozen=True)
class LabelledPictures:
    """Some pictures with the labels of one column.

    Attributes:
        pictures: Arrays (height, width, 3) of uint8.
        labels: Their labels.
    """

    pictures: list[Picture]
    labels: list[Label]

    def __len__(self) -> int:
        return len(self.pictures)


def support_and_queries(
    table: Mapping[str, Sequence[Any]], column: str, support: int, queries: int, seed: int
) -> tuple[LabelledPictures, LabelledPictures]:
    """Draw a labelled support set and queries that share no group with it.

    Args:
        table: The table.
        column: The column of the labels; rows without a label are left out.
        support: Number of pictures of the support set.
        queries: Number of queries.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    labelled = [row for row, label in enumerate(table[column]) if label is not None]
    groups = rng.permutation(sorted({table[GROUP][row] for row in labelled}))
    of_support = set(groups[: len(groups) // 2].tolist())
    order = rng.permutation(labelled).tolist()
    sides = (
        [row for row in order if table[GROUP][row] in of_support][:support],
        [row for row in order if table[GROUP][row] not in of_support][:queries],
    )
    first, second = (
        LabelledPictures([table["image"][row] for row in rows], [table[column][row] for row in rows]) for rows in sides
    )
    return first, second
