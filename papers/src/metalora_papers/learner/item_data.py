"""Suites "learner-emoji" and "learner-texts": real items with several columns of labels, and a pre-trained network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from metalora._util.processes import default_device
from metalora.learner import Backbone, ImagePreprocessor, load_backbone
from metalora.learner.data import (
    EpisodeSettings,
    EpisodeSource,
    PoolEpisodes,
    PreparedInputs,
    ProceduralNotions,
)
from metalora.learner.features import StageFeatures, to_device
from metalora_papers.learner.config import LearnerRunConfig
from metalora_papers.learner.suite import LearnerSuite
from metalora_papers.learner.suites import LabelledEpisode, frozen_statistics
from metalora_papers.metalora.emoji import load_emoji
from metalora_papers.metalora.labelled_items import LabelledItems
from metalora_papers.metalora.texts import load_texts
from metalora_papers.suite import device_of

BATCH = 128
CALIBRATION_ITEMS = 8 * BATCH
MAX_LENGTH = 48  # tokens; a sentence of a newspaper is rarely longer
HALF = (0.5, 0.5, 0.5)


class ItemData:
    """Items, a pre-trained backbone, and fixed test episodes.

    Args:
        items: The items with their labels.
        backbone: The network and the preparation of its inputs.
        run: The configuration.
    """

    def __init__(self, items: LabelledItems, backbone: Backbone, run: LearnerRunConfig):
        self.items, self.backbone, self.run = items, backbone, run
        self.trained = run.trained or items.trained
        self.held_out = run.held_out or items.never_trained
        self._tested = PreparedInputs(items.task_pool(run.split, ()), backbone.preprocessor)
        self._row_of = torch.full((len(items.groups),), -1)
        self._row_of[items.parts[run.split]] = torch.arange(len(items.parts[run.split]))

    @property
    def model(self) -> nn.Module:
        """The frozen backbone, as it was pre-trained."""
        return self.backbone.model

    def source(self, features: StageFeatures, label_sets: int) -> EpisodeSource:
        """Return the training episodes; support and queries share no group."""
        run = self.run
        columns = self.trained if run.procedural < 1 else ()
        prepared = PreparedInputs(self.items.task_pool("train", columns), self.backbone.preprocessor)
        statistics = frozen_statistics(features, prepared.batches(BATCH))
        settings = EpisodeSettings(
            support=run.support,
            query=run.query,
            label_sets=label_sets,
            procedural=run.procedural,
            class_episodes=run.class_episodes,
        )
        notions = ProceduralNotions(statistics) if run.procedural else None
        return PoolEpisodes([prepared], notions, [statistics], settings)

    def test_episode(self, task: str, number: int) -> LabelledEpisode:
        """Return a test episode; the rows are those of the part that is tested."""
        run = self.run
        episode = self.items.test_episode(
            task, number, run.seed, part=run.split, support=run.test_support, queries=run.test_query
        )
        rows = self._row_of[episode.support], self._row_of[episode.query]
        device = device_of(self.model)
        support, query = (to_device(self._tested.batch(part), device) for part in rows)
        labels = episode.support_labels.to(device), episode.query_labels.to(device)
        groups = self.items.groups[episode.support].to(device)
        return LabelledEpisode(support, labels[0], query, labels[1], *rows, groups)

    def validation(self) -> ItemData:
        """Return the same data with the test episodes of the validation split."""
        return ItemData(self.items, self.backbone, dataclasses.replace(self.run, split="val"))

    def calibration_batches(self) -> Sequence[Any]:
        """Return batches of the training part."""
        pool = self.items.task_pool("train", ())
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(pool), generator=generator)[:CALIBRATION_ITEMS]
        batches = (self.backbone.preprocessor(pool.take(rows).inputs) for rows in chosen.split(BATCH))
        return [to_device(batch, device_of(self.model)) for batch in batches]


def emoji_backbone(size: int) -> Backbone:
    """Return EfficientNet-Lite0 with its ImageNet weights, for drawings of a size in pixels."""
    preprocessor = ImagePreprocessor(size=(size, size), resize=size, mean=HALF, std=HALF, interpolation="bicubic")
    return _placed(load_backbone("efficientnet-lite0", preprocessor=preprocessor))


def text_backbone() -> Backbone:
    """Return MiniLM, for sentences."""
    return _placed(load_backbone("minilm", max_length=MAX_LENGTH))


def _placed(backbone: Backbone) -> Backbone:
    """Move the network of a backbone to where networks run, and return the backbone."""
    backbone.model.to(default_device())
    return backbone


def load_emoji_suite(run: LearnerRunConfig) -> LearnerSuite:
    """Load suite "learner-emoji": drawings of four vendors, EfficientNet-Lite0 with its ImageNet weights."""
    items = load_emoji(left_out=run.left_out_vendor or None)
    return LearnerSuite(ItemData(items, emoji_backbone(run.size), run), run)


def load_text_suite(run: LearnerRunConfig) -> LearnerSuite:
    """Load suite "learner-texts": sentences of BBC News, MiniLM."""
    return LearnerSuite(ItemData(load_texts(run.data_root), text_backbone(), run), run)
