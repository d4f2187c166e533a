"""An evaluation as one HTML file: methods, tasks, calibration, confusions, and nearest neighbours before and after."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from metalora._util.files import write_atomically
from metalora.learner.data import TaskPool
from metalora.learner.evaluation import EpisodeFeatures, TestEpisode, draw_test_episodes
from metalora.learner.html_template import PAGE
from metalora.learner.readouts import FittedReadout
from metalora.learner.report import EPISODES, LEARNER, REPORT_SEED, Report, Score
from metalora.learner.splits import named_by_pool

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

QUERIES, NEIGHBOURS = 3, 4  # of each task
THUMBNAIL = 56  # pixels
SHOWN_TEXT = 140  # characters
BINS = 10  # of the calibration plot
MAX_CLASSES = 20  # a larger confusion matrix is left out


@dataclass(frozen=True)
class Details:
    """What the page shows of the episodes in addition to the scores.

    Attributes:
        confidence: Probability of each predicted class, (m,), over all episodes.
        right: Whether it is the true class, (m,).
        confusions: For each task its classes, and the counts (classes, classes), true by predicted, of one episode.
        neighbours: For each task the HTML of its rows: a query, its neighbours before and after.
    """

    confidence: Tensor
    right: Tensor
    confusions: dict[str, tuple[list[str], Tensor]]
    neighbours: dict[str, list[str]]


def write_html(
    learner: MetaLearner,
    pools: Sequence[TaskPool],
    report: Report,
    path: str | Path,
    *,
    title: str = "Evaluation",
    episodes: int = EPISODES,
    features: EpisodeFeatures | None = None,
) -> None:
    """Write the page of an evaluation, completely or not at all.

    Args:
        learner: The learner.
        pools: What it was evaluated on.
        report: What `evaluate_pools` returned.
        path: The file.
        title: Its heading.
        episodes: Episodes of a task, as in the evaluation.
        features: The features that `evaluate_pools` has computed; None: they are computed again.

    Raises:
        ValueError: The file could not be written.
    """
    details = collect(learner, pools, episodes, features)
    write_atomically(path, page(report, details, title).encode())


def page(report: Report, details: Details, title: str) -> str:
    """Return the page as text.

    Args:
        report: The scores.
        details: What else is shown.
        title: Its heading.
    """
    confusions = (_confusion(task, *value) for task, value in details.confusions.items())
    neighbours = (_neighbour_table(task, rows) for task, rows in details.neighbours.items())
    episodes = max(len(score.accuracies) for score in report.scores)
    return PAGE.substitute(
        title=escape(title),
        verdict=escape(report.verdict),
        note=f"Episodes of each task: {episodes}, or fewer if it has too few labels; labelled examples of an episode: "
        f"{report.support}. Every method sees the same ones.",
        methods=_methods(report),
        tasks=_tasks(report),
        calibration_error=f"{report.calibration_error:.3f}",
        calibration=_calibration(details.confidence, details.right),
        confusions="\n".join(confusions),
        neighbours="\n".join(neighbours),
    )


# ---- what is shown ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def collect(
    learner: MetaLearner,
    pools: Sequence[TaskPool],
    episodes: int = EPISODES,
    features: EpisodeFeatures | None = None,
) -> Details:
    """Run the episodes of an evaluation again and keep what the page shows.

    Args:
        learner: The learner.
        pools: What it was evaluated on.
        episodes: Episodes of a task.
        features: Features of the pools, if some are known.
    """
    named = named_by_pool(pools)
    config = learner.config
    tasks = [(number, name) for number, pool in enumerate(named) for name in pool.columns]
    drawn = draw_test_episodes(named, tasks, episodes, config.support, config.query, config.seed + REPORT_SEED)
    features = features or EpisodeFeatures(learner, named)
    confidence, right = [], []
    confusions: dict[str, tuple[list[str], Tensor]] = {}
    neighbours: dict[str, list[str]] = {}
    for episode in drawn:
        fitted, queries = features.fitted(episode)
        probability, predicted = fitted.logits(queries).softmax(1).cpu().max(1)
        confidence.append(probability)
        right.append(predicted == episode.query_labels)
        if episode.task not in confusions:
            counts = torch.bincount(episode.query_labels * episode.classes + predicted, minlength=episode.classes**2)
            names = _class_names(named[episode.pool], episode)
            confusions[episode.task] = names, counts.view(episode.classes, episode.classes)
            neighbours[episode.task] = _neighbours(features, episode, fitted, queries, names)
    return Details(torch.cat(confidence), torch.cat(right), confusions, neighbours)


def _class_names(pool: TaskPool, episode: TestEpisode) -> list[str]:
    column = pool.columns[episode.task]
    names = [""] * episode.classes
    for row, label in zip(episode.support.tolist(), episode.support_labels.tolist(), strict=True):
        names[label] = str(column.classes[int(column.codes[row])])
    return names


def _neighbours(
    features: EpisodeFeatures, episode: TestEpisode, fitted: FittedReadout, queries: Tensor, names: Sequence[str]
) -> list[str]:
    """Return a row of HTML for each of the first queries."""
    count = min(QUERIES, len(queries))
    last = normalize(features.last_layer(episode.pool), dim=1)
    cosines = last[episode.query[:count]] @ last[episode.support].mT  # (queries, support)
    support, _ = features.of(episode)
    distances = torch.cdist(fitted.embed(queries[:count]), fitted.embed(support))  # (queries, support)
    inputs = features.pools[episode.pool].inputs
    rows = []
    for number in range(count):
        label = int(episode.query_labels[number])
        query = _figure(inputs[int(episode.query[number])], names[label], "")
        before = _figures(inputs, episode, cosines[number].argsort(descending=True), label, names)
        after = _figures(inputs, episode, distances[number].argsort(), label, names)
        rows.append(f"<tr><td>{query}</td><td>{before}</td><td>{after}</td></tr>")
    return rows


def _figures(inputs: Any, episode: TestEpisode, order: Tensor, label: int, names: Sequence[str]) -> str:
    figures = []
    for position in order[:NEIGHBOURS].tolist():
        own_label = int(episode.support_labels[position])
        kind = "right" if own_label == label else "wrong"
        figures.append(_figure(inputs[int(episode.support[position])], names[own_label], kind))
    return "".join(figures)


def _figure(item: Any, caption: str, kind: str) -> str:
    return f'<figure class="{kind}">{_shown(item)}<figcaption>{escape(caption)}</figcaption></figure>'


def _shown(item: Any) -> str:
    """Return an input as HTML: a picture as a small one, a text cut after some characters."""
    from metalora.learner.data.pool import modality_of

    kind = modality_of(item)
    if kind == "text":
        text = item if len(item) <= SHOWN_TEXT else f"{item[:SHOWN_TEXT]}..."
        return f"<blockquote>{escape(text)}</blockquote>"
    if kind == "images":
        from metalora.learner.data.pictures import open_picture

        picture = open_picture(item)
        picture.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))
        content = io.BytesIO()
        picture.save(content, "PNG")
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}">'
    numbers = torch.as_tensor(item).flatten()[:4].tolist()
    return f"<blockquote>{', '.join(f'{number:.2f}' for number in numbers)} ...</blockquote>"


# ---- HTML ------------------------------------------------------------------------------------------------------------
def _table(header: Sequence[str], rows: Iterable[str], kind: str = "sorts") -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "\n".join(rows)
    return f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>\n{body}\n</tbody></table>'


def _methods(report: Report) -> str:
    means = report.means()
    rows = []
    for method in sorted(means, key=means.__getitem__, reverse=True):
        scores = [score for score in report.scores if score.method == method]
        error = sum(score.error**2 for score in scores) ** 0.5 / len(scores)
        rows.append(_row(method, [_cell(means[method], error, max(means.values())), f"<td>{len(scores)}</td>"]))
    return _table(("method", "accuracy", "tasks"), rows)


def _tasks(report: Report) -> str:
    tasks = list(dict.fromkeys(score.task for score in report.scores))
    methods = list(dict.fromkeys(score.method for score in report.scores))
    by_name: dict[tuple[str, str], Score] = {(score.task, score.method): score for score in report.scores}
    best = {task: max(by_name[task, method].mean for method in methods) for task in tasks}
    rows = []
    for method in methods:
        scores = {task: by_name[task, method] for task in tasks}
        rows.append(_row(method, [_cell(score.mean, score.error, best[task]) for task, score in scores.items()]))
    return _table(("method", *tasks), rows)


def _row(method: str, cells: Sequence[str]) -> str:
    kind = ' class="ours"' if method == LEARNER else ""
    return f"<tr{kind}><td>{escape(method)}</td>{''.join(cells)}</tr>"


def _cell(mean: float, error: float, best: float) -> str:
    kind = ' class="best"' if mean == best else ""
    return f'<td{kind} data-value="{mean:.6f}">{100 * mean:.1f} ± {100 * error:.1f}</td>'


def _confusion(task: str, names: Sequence[str], counts: Tensor) -> str:
    if len(names) > MAX_CLASSES:
        return f"<div><h3>{escape(task)}</h3><p>{len(names)} classes: too many to show.</p></div>"
    rows = []
    for name, row in zip(names, counts.tolist(), strict=True):
        total = max(sum(row), 1)
        cells = "".join(
            f'<td style="background: rgb(42 120 214 / {0.75 * count / total:.2f})">{count}</td>' for count in row
        )
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    return f"<div><h3>{escape(task)}</h3>{_table(('true', *names), rows, kind='confusion')}</div>"


def _neighbour_table(task: str, rows: Sequence[str]) -> str:
    table = _table(("query", "before", "after"), rows, kind="neighbours")
    return f'<h3>{escape(task)}</h3><div class="scroll">{table}</div>'


def _calibration(confidence: Tensor, right: Tensor) -> str:
    """Return the calibration plot as SVG: a point for each bin of probabilities."""
    size, margin = 260, 36
    points = []
    for low in range(BINS):
        inside = (confidence > low / BINS) & (confidence <= (low + 1) / BINS)
        if not inside.any():
            continue
        x, y = float(confidence[inside].mean()), float(right[inside].float().mean())
        share = float(inside.float().mean())
        tip = f"probability {x:.2f}, right {y:.2f}, {int(inside.sum())} predictions"
        points.append(
            f'<circle cx="{margin + size * x:.1f}" cy="{size * (1 - y) + 10:.1f}" r="{3 + 14 * share**0.5:.1f}" '
            f'fill="#2a78d6" fill-opacity="0.65"><title>{tip}</title></circle>'
        )
    bottom, end = size + 10, margin + size
    ticks = "".join(
        f'<text x="{margin + size * tick / 4:.0f}" y="{bottom + 15}" text-anchor="middle">{tick / 4:g}</text>'
        f'<text x="{margin - 6}" y="{size * (1 - tick / 4) + 14:.0f}" text-anchor="end">{tick / 4:g}</text>'
        for tick in range(5)
    )
    return (
        f'<svg width="{end + 30}" height="{bottom + 40}" role="img" aria-label="calibration">'
        f'<path d="M{margin} 10V{bottom}H{end}" fill="none" stroke="currentColor"/>'
        f'<path d="M{margin} {bottom}L{end} 10" stroke="currentColor" stroke-dasharray="4 4" opacity="0.5"/>'
        f'{"".join(points)}{ticks}<text x="{margin + size / 2:.0f}" y="{bottom + 32}" text-anchor="middle">'
        "probability of the predicted class</text></svg>"
    )
