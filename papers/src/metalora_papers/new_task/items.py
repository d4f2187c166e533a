"""The inputs of a kind, their frozen network, and new tasks: support sets and queries as a user has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from metalora.learner import Backbone, TaskPool
from metalora_papers.learner.item_data import emoji_backbone, text_backbone
from metalora_papers.metalora.emoji import load_emoji
from metalora_papers.metalora.labelled_items import LabelledItems
from metalora_papers.metalora.texts import load_texts
from metalora_papers.new_task.config import IMAGES, NewTaskRunConfig

IMAGE_SIZE = 64
POOL_SEED = 0


@dataclass(frozen=True)
class NewTask:
    """A support set and queries; no group is on both sides.

    Attributes:
        inputs: The support set: pictures, or texts.
        labels: Its classes, consecutive from 0.
        groups: The groups of its items.
        queries: Inputs to predict.
        query_labels: Their classes.
    """

    inputs: list[Any]
    labels: list[int]
    groups: list[int]
    queries: list[Any]
    query_labels: list[int]


@cache
def load_items(suite: str, data_root: str | None) -> LabelledItems:
    """Return the labelled inputs of a kind, read once in a process.

    Args:
        suite: The kind of inputs.
        data_root: Where they are; None: the cache, or the package that brings them.
    """
    return load_emoji(folder=data_root) if suite == IMAGES else load_texts(data_root)


def load_network(suite: str) -> Backbone:
    """Return the frozen network of a kind of inputs, loaded anew."""
    return emoji_backbone(IMAGE_SIZE) if suite == IMAGES else text_backbone()


def new_task(items: LabelledItems, name: str, run: NewTaskRunConfig) -> NewTask:
    """Draw the new task of a notion; every method has the same one.

    Args:
        items: All inputs.
        name: Name of the notion.
        run: Seed, split and sizes.
    """
    episode = items.test_episode(name, 0, run.seed, part=run.split, support=run.support, queries=run.queries)
    return NewTask(
        inputs=_as_given(items, episode.support),
        labels=episode.support_labels.tolist(),
        groups=items.groups[episode.support].tolist(),
        queries=_as_given(items, episode.query),
        query_labels=episode.query_labels.tolist(),
    )


def _as_given(items: LabelledItems, rows: Tensor) -> list[Any]:
    if isinstance(items.inputs, Tensor):
        return list(items.inputs[rows].numpy())
    return [items.inputs[row] for row in rows.tolist()]


def training_pool(items: LabelledItems, count: int) -> TaskPool:
    """Return inputs of the training part with their trained notions, at most `count` of them, by chance.

    Args:
        items: All inputs.
        count: Number of inputs.
    """
    pool = items.task_pool("train")
    order: Sequence[int] = torch.randperm(len(pool), generator=torch.Generator().manual_seed(POOL_SEED)).tolist()
    return pool.take(order[:count])
