"""Table I of MetaLoRA, on data that can be rerun: which runs it takes, and how they are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from metalora.adapters.attach import attach, detach
from metalora.config import AdapterConfig, BackboneConfig, ConditionConfig, TrainConfig, nearest
from metalora.experiments.config import RunConfig, TableConfig
from metalora.experiments.models import load_model
from metalora.experiments.report import Table, comparison, comparison_table, latest, plot_bars, summary_table
from metalora.experiments.runs import matched_rank
from metalora.training.backbones import build

GENERATED = ("metalora-cp", "metalora-tr")
STATIC = ("lora", "multi-lora", "moe-lora")


def condition(table: TableConfig) -> ConditionConfig:
    """The condition of the generated methods: a labelled support set for attributes, the input itself else."""
    scope = "support" if table.suite == "attributes" else "sample"
    return ConditionConfig(
        scope=scope, hidden=table.hidden, heads=table.heads, descriptor_dropout=table.descriptor_dropout
    )


def adapters(table: TableConfig) -> dict[str, AdapterConfig | None]:
    """Row name -> adapter: every static method at the smallest rank whose count reaches that of CP and TR."""
    made = condition(table)
    found: dict[str, AdapterConfig | None] = {
        "original": None,
        "metalora-cp": AdapterConfig("metalora-cp", table.rank, condition=made, clip_rank=True),
        "metalora-tr": AdapterConfig("metalora-tr", table.ring_rank, condition=made, clip_rank=True),
    }
    size = table.size if table.suite == "attributes" else 28
    model = load_model(table.model, weights=False) if table.model else build(table.backbone, size, 6)
    model.reset_classifier(0)
    budget = max(_count(model, found[name], size) for name in GENERATED)
    constant = ConditionConfig(scope="constant")
    for name in STATIC:
        config = AdapterConfig(name, clip_rank=True, condition=constant)
        rank = matched_rank(model, config, budget)
        found[name] = dataclasses.replace(config, rank=rank)
        if table.equal_rank:
            equal = table.rank // config.experts if name == "multi-lora" else table.rank
            found[f"{name} at rank {table.rank}"] = dataclasses.replace(config, rank=equal)
    if table.equal_rank:
        name = f"metalora-cp at rank {table.ring_rank}"
        found[name] = dataclasses.replace(found["metalora-cp"], rank=table.ring_rank)
    for name in table.methods:
        if name not in found:
            raise ValueError(f"table: unknown row {name!r}{nearest(name, found)}")
    return {name: found[name] for name in table.methods or found}


def _count(model: torch.nn.Module, config: AdapterConfig, size: int) -> int:
    count = attach(model, config, example=torch.zeros(1, 3, size, size)).num_params()
    detach(model)
    return count


def runs(table: TableConfig, rates: dict[str, float], *, split: str = "test") -> list[RunConfig]:
    """Every run of the table, seeds outermost, so that a table that is cut off has whole seeds first."""
    made = adapters(table)
    seeds = table.seeds if split == "test" else (1000,)  # hyper-parameters have a seed of their own
    return [
        _run(table, name, adapter, seed, rates.get(name, table.lr), split)
        for seed in seeds
        for name, adapter in made.items()
        if split == "test" or adapter is not None
    ]


def _run(table: TableConfig, name: str, adapter: AdapterConfig | None, seed: int, lr: float, split: str) -> RunConfig:
    if adapter is not None:
        adapter = dataclasses.replace(adapter, seed=seed)
    config = RunConfig(
        suite=table.suite, data="" if table.suite == "natural" else table.data, data_root=table.data_root, method=name,
        adapter=adapter, backbone=BackboneConfig(architecture=table.backbone, steps=table.pretrain_steps),
        train=TrainConfig(steps=table.steps, lr=lr), seed=seed, split=split,
    )  # fmt: skip
    episodes = dataclasses.replace(config.episodes, trained=table.trained, held_out=table.held_out, size=table.size)
    config = dataclasses.replace(config, model=table.model, episodes=episodes)
    loss = table.loss or ("contrastive" if table.suite == "natural" else "distillation")
    return dataclasses.replace(config, domains=dataclasses.replace(config.domains, loss=loss))


def choosing_runs(table: TableConfig) -> list[RunConfig]:
    """The runs on the validation split from which each method's learning rate is chosen."""
    return [run for lr in table.lr_grid for run in runs(dataclasses.replace(table, lr=lr), {}, split="val")]


def headline(suite: str) -> tuple[str, ...]:
    """The metrics of a suite, the first of which chooses the learning rate."""
    if suite == "attributes":
        return (
            "k5.trained_mean",
            "k5.unseen_class",
            "k5.held_out_mean",
            "k10.trained_mean",
            "other_support.trained_mean",
        )
    cells = ("unseen_domain_seen_class", "unseen_domain_unseen_class")
    return (*(f"clean.k5.{cell}" for cell in cells), *(f"own.k5.{cell}" for cell in cells))


def chosen_rates(rows: list[dict], suite: str) -> dict[str, float]:
    """Method -> the learning rate with the best first headline metric on the validation split."""
    best: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row["config"]["split"] != "val":
            continue
        value = _value(row, headline(suite)[0])
        name, lr = row["config"]["method"], row["config"]["train"]["lr"]
        if name not in best or value > best[name][0]:
            best[name] = (value, lr)
    return {name: lr for name, (_, lr) in best.items()}


def rows_of(rows: list[dict], table: TableConfig) -> list[dict]:
    """The test rows of this suite, data and backbone; ValueError if there is none."""
    data = "" if table.suite == "natural" else table.data
    found = [
        row
        for row in latest(rows)
        if row["config"]["split"] == "test"
        and (row["suite"], row["config"]["data"]) == (table.suite, data)
        and row["config"]["backbone"]["architecture"] == table.backbone
        and (not table.methods or row["config"]["method"] in table.methods)
    ]
    if not found:
        raise ValueError(f"no test row of suite {table.suite!r}, data {data!r}, backbone {table.backbone!r}")
    return found


@dataclass
class Report:
    """What the rows of one table say."""

    tables: list[Table] = field(default_factory=list)
    comparisons: list = field(default_factory=list)

    def to_json(self) -> dict:
        """Plain values for --json."""
        return {
            "tables": [dataclasses.asdict(table) for table in self.tables],
            "comparisons": [dataclasses.asdict(one) for one in self.comparisons],
        }


def report(rows: list[dict], table: TableConfig) -> Report:
    """The tables of the test rows, with the paired comparisons where there are two seeds or more."""
    title = f"suite {table.suite}, {table.data if table.suite != 'natural' else 'real sets'}, {table.backbone}"
    metrics = _present(rows, headline(table.suite))
    found = Report([summary_table(rows, (*metrics, "num_params"), title=title)])
    if table.suite == "attributes":
        plain = (
            "lda.trained_mean", "stats_lda.trained_mean", "stats_lda.unseen_class", "fused.trained_mean",
            "fused.unseen_class", "fused.held_out_mean", "selected.trained_mean", "selected.held_out_mean",
        )  # fmt: skip
        plain = _present(rows, plain)
        found.tables.append(summary_table(rows, plain, title=f"{title}: plain baselines and fusion, K=5"))
    names = {row["config"]["method"] for row in rows}
    if len({row["seed"] for row in rows}) > 1 and names >= {*GENERATED, *STATIC}:
        for metric in metrics[:2]:
            found.comparisons += comparison(rows, metric=metric, treatment_methods=GENERATED, baseline_methods=STATIC)
        found.tables.append(comparison_table(found.comparisons, title=f"{title}: against the best static of that size"))
    return found


def _value(row: dict, metric: str) -> float | None:
    value = row["results"]
    for part in metric.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _present(rows: list[dict], metrics: Sequence[str]) -> tuple[str, ...]:
    return tuple(metric for metric in metrics if any(_value(row, metric) is not None for row in rows))


def plot(rows: list[dict], table: TableConfig, path: Path) -> None:
    """The headline metrics as bars."""
    metrics = _present(rows, headline(table.suite)[:4])
    plot_bars(rows, metrics, path, title=f"suite {table.suite}, {table.data}, {table.backbone}")
