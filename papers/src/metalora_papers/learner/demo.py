"""The demo: train a learner on pictures, with and without labels; adapt to a task that was never trained; predict."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metalora import AdapterConfig
from metalora._util.files import write_atomically
from metalora.cli.render import progress, show, status
from metalora.learner import AdaptedTask, MetaLearner, Report, read_tasks
from metalora_papers.learner.demo_config import DemoConfig
from metalora_papers.learner.demo_data import (
    GROUP,
    DemoPictures,
    LabelledPictures,
    load_demo_pictures,
    support_and_queries,
)
from metalora_papers.learner.neighbours import draw_neighbours, nearest
from metalora_papers.made_files import made_files

BACKBONE = "efficientnet-lite0"  # with its ImageNet weights, from a package
LEARNER, WITHOUT_LABELS = "this learner", "this learner, no labels"
QUERIES_IN_THE_PICTURE = 8


def run_demo(config: DemoConfig, out: Path, overwrite: bool = False) -> None:
    """Do the job of a user, and print what happens.

    Args:
        config: The settings.
        out: Folder of the learner, the task, the predictions and the picture of neighbours.
        overwrite: Replace predictions and a picture in the folder that no demo has made.

    Raises:
        ValueError: The pictures cannot be loaded, or a file is there that no demo has made.
    """
    started = time.perf_counter()
    with status("loading the pictures", quiet=False):
        pictures = load_demo_pictures(config.data)
    trained = [name for name in pictures.table if name not in ("image", GROUP, *pictures.never_trained)]
    print(f"1. {len(pictures.table['image']):,} {pictures.name}; columns of labels: {', '.join(trained)}")
    print(f"   never trained: {', '.join(pictures.never_trained)}")
    learner = fit_learner(config, pictures, with_labels=True)
    reports = {LEARNER: learner.report_}
    if config.steps_without_labels:
        reports[WITHOUT_LABELS] = fit_learner(config, pictures, with_labels=False).report_
    title = f"2. accuracy from {learner.report_.support} labelled examples of a task, on pictures not trained on, %"
    rows = comparison_rows(reports)
    show(None, False, title, ("method", "trained tasks", "never trained", pictures.shown), rows)
    print(f"   {learner.report_.verdict}\n")
    use_learner(config, pictures, learner, out, overwrite)
    print(f"\nThe demo took {(time.perf_counter() - started) / 60:.1f} minutes.")


def fit_learner(config: DemoConfig, pictures: DemoPictures, *, with_labels: bool) -> MetaLearner:
    """Train a learner on the table, or on its pictures alone, and compare it with its peers.

    Args:
        config: The settings.
        pictures: The pictures.
        with_labels: Train on the columns of labels too.
    """
    steps = config.steps if with_labels else config.steps_without_labels
    learner = MetaLearner(
        BACKBONE,
        adapter=AdapterConfig("lora", rank=8, targets="conv"),
        image_size=config.image_size,
        steps=steps,
        validate_every=0,
        seed=config.seed,
    )
    label = "with labels" if with_labels else "without labels"
    holdout = pictures.never_trained if with_labels else None
    with progress(steps, f"meta-training {label}", quiet=False) as advance:
        learner.fit(
            pictures.table,
            label_columns=None if with_labels else (),
            group_column=GROUP,
            holdout=holdout,
            on_step=lambda step, loss: advance(step + 1, f"loss {loss:.3f}"),
            report=False,
        )
    with status("comparing with the peers", quiet=False):
        # The same pictures are kept with and without labels: the choice depends on groups and seed alone.
        learner.make_report(read_tasks(pictures.table, group_column=GROUP), holdout=pictures.never_trained)
    return learner


def comparison_rows(reports: Mapping[str, Report]) -> list[dict[str, str]]:
    """Return a row for each method, the best on tasks that were never trained first.

    Args:
        reports: Reports on the same episodes, by the name of their learner.
    """
    by_method: dict[str, dict[str, Any]] = {}
    for name, report in reports.items():
        for row in report.table():
            method = name if row["method"] == LEARNER else row["method"]
            by_method[method] = row | {"method": method}
    ordered = sorted(by_method.values(), key=lambda row: -row["held out"])
    names = {"trained": "trained tasks", "held out": "never trained"}
    return [
        {names.get(key, key): value if key == "method" else f"{100 * value:.1f}" for key, value in row.items()}
        for row in ordered
    ]


def use_learner(config: DemoConfig, pictures: DemoPictures, learner: MetaLearner, out: Path, overwrite: bool) -> None:
    """Save the learner, adapt it to a task that was never trained, predict, and draw nearest neighbours."""
    learner.save_pretrained(out / "learner")
    support, queries = support_and_queries(
        pictures.further, pictures.shown, config.examples, config.queries, config.seed
    )
    started = time.perf_counter()
    task = learner.adapt(support.pictures, support.labels)
    seconds = time.perf_counter() - started
    file = task.save_pretrained(out / "task", max_bytes=20_000) / "task.safetensors"
    print(f"3. Adapted to {pictures.shown!r} by {len(support)} examples in {1000 * seconds:.0f} ms, without training:")
    print(f"   {file}, {file.stat().st_size / 1000:.1f} kB")
    accuracy = task.score(queries.pictures, queries.labels)
    print(f"   {len(queries)} further pictures: {accuracy:.0%} right (a guess: {1 / len(task.classes_):.0%})")
    with made_files(out, overwrite) as folder:
        predictions = write_predictions(folder / "predictions.csv", task, queries)
        shares, picture = show_neighbours(folder, pictures.shown, task, support, queries)
    print(f"   {out / predictions.name}")
    print(f"4. Nearest neighbours before and after: {shares}\n   {out / picture.name}")


def write_predictions(path: Path, task: AdaptedTask, queries: LabelledPictures) -> Path:
    """Write label, prediction, its probability and the novelty of each query as a CSV file."""
    predicted = task.predict(queries.pictures)
    probability = task.predict_proba(queries.pictures).max(1)
    novelty = task.novelty(queries.pictures)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["picture", "label", "prediction", "probability", "novelty"])
    for number, label in enumerate(queries.labels):
        writer.writerow([number, label, predicted[number], f"{probability[number]:.4f}", f"{novelty[number]:.4f}"])
    write_atomically(path, text.getvalue().encode())
    return path


def show_neighbours(
    out: Path, name: str, task: AdaptedTask, support: LabelledPictures, queries: LabelledPictures
) -> tuple[str, Path]:
    """Draw the nearest neighbours of some queries, and say how many of all neighbours have the label of their query.

    Returns:
        The sentence, and the file of the picture.
    """
    learner = task.learner
    before = nearest(_last_layer(learner, queries), _last_layer(learner, support))
    after = nearest(task.transform(queries.pictures), task.transform(support.pictures))
    first = slice(QUERIES_IN_THE_PICTURE)
    shown = LabelledPictures(queries.pictures[first], queries.labels[first])
    title = f"Nearest neighbours, task {name!r} (green: the same label)"
    path = draw_neighbours(out / "neighbours.png", title, shown, support, before[first], after[first])
    labels = np.array(support.labels, dtype=object)
    truth = np.array(queries.labels, dtype=object)[:, None]
    shares = [float((labels[neighbours] == truth).mean()) for neighbours in (before, after)]
    return f"{shares[0]:.0%} and {shares[1]:.0%} have the same label", path


@torch.no_grad()
def _last_layer(learner: MetaLearner, pictures: LabelledPictures) -> np.ndarray[Any, Any]:
    """Return the pooled last layer of the frozen network, each row of length one, (n, width)."""
    batches = learner.batches(pictures.pictures)
    features = torch.cat([learner.features.last_layer(batch) for batch in batches])
    unit: np.ndarray[Any, Any] = torch.nn.functional.normalize(features, dim=1).cpu().numpy()
    return unit
