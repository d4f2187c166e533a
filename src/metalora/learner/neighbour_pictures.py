"""Nearest labelled examples of a query, before and after, as pictures or texts inside of a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from metalora._util.report_page import Cell, Html, joined, text
from metalora.learner.evaluation import EpisodeFeatures, TestEpisode
from metalora.learner.readouts import FittedReadout

QUERIES, NEIGHBOURS = 3, 4  # of each task
SIDE, QUALITY = 96, 75  # pixels and JPEG quality of a picture
SHOWN_TEXT = 140  # characters
SHOWN_NUMBERS = 4


def neighbour_rows(
    features: EpisodeFeatures, episode: TestEpisode, fitted: FittedReadout, queries: Tensor, names: Sequence[str]
) -> list[list[Cell]]:
    """Return a row for each of the first queries: the query, its neighbours before, and its neighbours after.

    Before is the cosine in the last layer of the frozen network; after, the distance in the embedding of the task.

    Args:
        features: The features of the pools.
        episode: The episode.
        fitted: The readout of its support set.
        queries: Features of its queries, (m, d).
        names: The classes of the episode.
    """
    count = min(QUERIES, len(queries))
    last = normalize(features.last_layer(episode.pool), dim=1)
    cosines = last[episode.query[:count]] @ last[episode.support].mT  # (queries, support)
    support, _ = features.of(episode)
    distances = torch.cdist(fitted.embed(queries[:count]), fitted.embed(support))  # (queries, support)
    shown = _Shown(features.pools[episode.pool].inputs, features.learner.backbone.preprocessor.kind)
    rows = []
    for number in range(count):
        label = int(episode.query_labels[number])
        query = _figure(shown.html(int(episode.query[number])), names[label], "")
        before = _figures(shown, episode, cosines[number].argsort(descending=True), label, names)
        after = _figures(shown, episode, distances[number].argsort(), label, names)
        rows.append([Cell(query), Cell(before), Cell(after)])
    return rows


def _figures(shown: _Shown, episode: TestEpisode, order: Tensor, label: int, names: Sequence[str]) -> Html:
    figures = []
    for position in order[:NEIGHBOURS].tolist():
        its_label = int(episode.support_labels[position])
        kind = "right" if its_label == label else "wrong"
        figures.append(_figure(shown.html(int(episode.support[position])), names[its_label], kind))
    return joined(figures, "")


def _figure(shown: Html, label: str, kind: str) -> Html:
    sign = {"right": "✓ ", "wrong": "✗ ", "": ""}[kind]
    return Html(f'<figure class="{kind}">{shown}<figcaption>{sign}{text(label)}</figcaption></figure>')


@dataclass(frozen=True)
class _Shown:
    """Inputs as HTML.

    Attributes:
        inputs: The inputs.
        kind: What the network takes them for: "images", "text" or "arrays".
    """

    inputs: Any
    kind: str

    def html(self, row: int) -> Html:
        """Return an input as a small picture, as text cut after some characters, or as its first numbers."""
        item = self.inputs[row]
        if self.kind == "text":
            return _quoted(item if len(item) <= SHOWN_TEXT else f"{item[:SHOWN_TEXT]}...")
        if self.kind == "images":
            return _picture(item)
        numbers = torch.as_tensor(item).flatten()[:SHOWN_NUMBERS].tolist()
        return _quoted(f"{', '.join(f'{number:.2f}' for number in numbers)} ...")


def _quoted(content: str) -> Html:
    return Html(f"<blockquote>{text(content)}</blockquote>")


def _picture(item: Any) -> Html:
    from metalora.learner.data.pictures import open_picture

    picture = open_picture(item)
    picture.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY)
    return Html(f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}">')
