"""The demo: a small table, and then the main use of an adapter: a few labelled examples in, predictions out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import metalora
from metalora.adapters.adapter import Adapter
from metalora.knn import knn_predict
from metalora_papers.config import RunConfig, TableConfig
from metalora_papers.metalora.episode_suite import EpisodeSuite
from metalora_papers.metalora.vision import load_episodes
from metalora_papers.tables import run_table

SHOWN = "metalora-cp"  # the method whose adapter is used at the end
NOTIONS = ("position", "frame", "class")
EXAMPLES, NEIGHBOURS, EPISODE_SEED = 60, 5, 12345


def run_demo(
    name: str, table: TableConfig, out: Path, *, workers: int, as_json: bool, rows_file: Path | None = None
) -> None:
    """Run a comparison with one seed and few steps, then use the saved adapter of MetaLoRA-CP if there is one."""
    small = dataclasses.replace(table, seeds=(0,), steps=800, pretrain_steps=1000)
    for run, row in run_table(name, small, out, workers=workers, as_json=as_json, rows_file=rows_file):
        if isinstance(run, RunConfig) and run.suite == "attributes" and run.method == SHOWN:
            show_use(run, out / "adapters" / f"{row['key']}.safetensors", Console(stderr=as_json))
            return


@torch.no_grad()
def show_use(run: RunConfig, path: Path, console: Console) -> None:
    """Print what a user does with a saved adapter: sixty labelled examples in, predictions out, one forward pass."""
    suite = load_episodes(run)
    adapter = metalora.load(suite.model, path)
    size = path.stat().st_size / 1000
    console.print(f"\n[bold]Using it[/bold]: {path} ({size:.1f} kB), loaded on its frozen backbone")
    for notion in NOTIONS:
        console.print(_use(suite, adapter, notion, path.with_name(f"{notion}.condition.safetensors")))


def _use(suite: EpisodeSuite, adapter: Adapter, notion: str, condition_file: Path) -> str:
    """Generate the adapter of one notion, save its condition, and predict; returns the line to print."""
    drawn = suite.images.episode(notion, "test", EXAMPLES, EXAMPLES, seed=EPISODE_SEED)
    episode = suite.normalised_episode(drawn)
    start = time.perf_counter()
    condition = adapter.condition(episode.support_x, episode.support_y)
    milliseconds = 1000 * (time.perf_counter() - start)
    condition.save(condition_file)
    support = suite.model(episode.support_x, condition=condition)
    query = suite.model(episode.query_x, condition=condition)
    predicted = knn_predict(support, episode.support_y, query, NEIGHBOURS)
    with adapter.disabled():
        support, query = suite.model(episode.support_x), suite.model(episode.query_x)
    predicted_without = knn_predict(support, episode.support_y, query, NEIGHBOURS)

    def accuracy(labels: Tensor) -> float:
        return float((labels == episode.query_y).float().mean())

    return (
        f"  {EXAMPLES} examples labelled by {notion:>8}: adapter generated in {milliseconds:.0f} ms without training "
        f"({condition_file.stat().st_size / 1000:.1f} kB); 5-NN on {EXAMPLES} new images {accuracy(predicted):.0%} "
        f"(frozen backbone alone {accuracy(predicted_without):.0%}), first: {predicted[:8].tolist()}"
    )
