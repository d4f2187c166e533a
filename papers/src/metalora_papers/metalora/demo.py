"""The main job, once: load an adapter, hand it a few labelled examples of a notion, and predict."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from rich.console import Console

import metalora
from metalora.knn import knn_predict
from metalora_papers.config import RunConfig
from metalora_papers.metalora.vision import prepare


@torch.no_grad()
def show_use(run: RunConfig, path: Path, console: Console) -> None:
    """Print what a user does with a saved adapter: sixty labelled examples in, predictions out, one forward pass."""
    prepared = prepare(run)
    experiment = prepared.experiment
    adapter = metalora.load(prepared.model, path)
    console.print(
        f"\n[bold]Using it[/bold]: {path} ({path.stat().st_size / 1000:.1f} kB), loaded on its frozen backbone"
    )
    for attribute in ("position", "frame", "class"):
        episode = experiment.prepared(experiment.suite.episode(attribute, "test", 60, 60, seed=12345))
        start = time.perf_counter()
        condition = adapter.condition(episode.support_x, episode.support_y)
        seconds = time.perf_counter() - start
        tenant = path.with_name(f"{attribute}.condition.safetensors")
        condition.save(tenant)
        support = prepared.model(episode.support_x, condition=condition)
        query = prepared.model(episode.query_x, condition=condition)
        predicted = knn_predict(support, episode.support_y, query, 5)
        with adapter.disabled():
            plain = knn_predict(
                prepared.model(episode.support_x), episode.support_y, prepared.model(episode.query_x), 5
            )
        right, before = (float((p == episode.query_y).float().mean()) for p in (predicted, plain))
        console.print(
            f"  60 examples labelled by {attribute:>8}: adapter generated in {1000 * seconds:.0f} ms without training "
            f"({tenant.stat().st_size / 1000:.1f} kB); 5-NN on 60 new images {right:.0%} "
            f"(frozen backbone alone {before:.0%}), first: {predicted[:8].tolist()}"
        )
