"""A picture of nearest neighbours: those in the frozen network, and those in the embedding of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metalora._util.files import write_figure
from metalora_papers.learner.demo_data import LabelledPictures

NEIGHBOURS = 5
TITLE_HEIGHT = 0.95  # inches of the title and the headings
RIGHT, WRONG, NEUTRAL = "#1a9850", "#d73027", "#666666"
Embedding = np.ndarray[Any, Any]


def nearest(queries: Embedding, support: Embedding, count: int = NEIGHBOURS) -> Embedding:
    """Return the numbers of the nearest support items of each query by Euclidean distance, (m, count).

    Args:
        queries: Embeddings, (m, d).
        support: Embeddings, (n, d).
        count: Number of neighbours.
    """
    distances = ((queries[:, None] - support[None]) ** 2).sum(2)
    neighbours: Embedding = distances.argsort(1, kind="stable")[:, :count]
    return neighbours


def draw_neighbours(
    path: Path,
    title: str,
    queries: LabelledPictures,
    support: LabelledPictures,
    before: Embedding,
    after: Embedding,
) -> Path:
    """Draw a row for each query: the query, its neighbours before, its neighbours after; green if the label agrees.

    Args:
        path: The PNG file.
        title: Title of the picture.
        queries: The queries.
        support: The labelled pictures among which the neighbours are.
        before: Numbers of the neighbours in the frozen network, (m, neighbours).
        after: Numbers of the neighbours in the embedding of the task, (m, neighbours).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, count = len(queries), before.shape[1]
    height = 1.05 * rows + TITLE_HEIGHT
    widths = [1, 0.35, *[1] * count, 0.35, *[1] * count]
    figure, axes = plt.subplots(
        rows, len(widths), figsize=(0.95 * sum(widths), height), width_ratios=widths, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for row in range(rows):
        _draw(axes[row, 0], queries.pictures[row], NEUTRAL, str(queries.labels[row]))
        for start, neighbours in ((2, before[row]), (3 + count, after[row])):
            for place, number in enumerate(neighbours):
                agrees = support.labels[number] == queries.labels[row]
                _draw(axes[row, start + place], support.pictures[number], RIGHT if agrees else WRONG)
    figure.suptitle(title)
    for column, text in ((0, "query"), (2 + count // 2, "frozen network"), (3 + count + count // 2, "after adapting")):
        axes[0, column].annotate(
            text, (0.5, 1.35), xycoords="axes fraction", ha="center", va="bottom", fontsize=11, annotation_clip=False
        )
    figure.subplots_adjust(0.02, 0.03, 0.98, 1 - TITLE_HEIGHT / height, wspace=0.12, hspace=0.35)
    write_figure(figure, path, dpi=110)
    plt.close(figure)
    return path


def _draw(axis: Any, picture: Embedding, colour: str, label: str = "") -> None:
    """Draw a picture with a coloured frame, and its label above it."""
    height, width = picture.shape[:2]
    axis.imshow(picture)
    left, top, right, bottom = -2, -2, width + 1, height + 1
    x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
    axis.plot(x, y, color=colour, linewidth=3, clip_on=False)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)
    axis.set_title(label, fontsize=8, pad=4)
