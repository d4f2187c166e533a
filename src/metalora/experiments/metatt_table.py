"""MetaTT's Tables 2 and 3 on text that is at hand: which runs they take, and how they are reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from metalora.config import AdapterConfig, ConditionConfig, TrainConfig, nearest
from metalora.data import glue, news
from metalora.data.sources import check_choice
from metalora.experiments.config import TextRunConfig, TextTableConfig
from metalora.experiments.report import Table, comparison, comparison_table, latest, summary_table

TASKS = {"news": tuple(news.TASKS), "glue": tuple(glue.TASKS)}
CHOOSING_SEED = 1000
REFERENCE = "lora"
FULL_LR_RATIO = 0.01


def adapters(table: TextTableConfig) -> dict[str, AdapterConfig | None]:
    """Row name -> adapter: the head alone, LoRA, the tensor trains, and (of joint training) a task core."""
    common: dict[str, Any] = dict(targets=table.targets, condition=ConditionConfig(scope="constant"))
    train = dict(rank=table.rank, alpha=table.alpha, **common)
    zero, *rest = table.init.split("-")
    found: dict[str, AdapterConfig | None] = {
        "head alone": None,
        "lora": AdapterConfig("lora", table.rank, alpha=2.0 * table.rank, **common),
        "metatt-4d": AdapterConfig("metatt-4d", init=table.init, **train),
        "metatt-5d": AdapterConfig("metatt-5d", init="-".join([zero, *rest[:2], "id", *rest[2:]]), **train),
    }
    if table.joint:
        init = "-".join([zero, *rest[:1], "id", *rest[1:]])
        found["metatt-4+1d"] = AdapterConfig("metatt-4+1d", init=init, tasks=len(table.tasks), **train)
    if table.full:
        found["every weight"] = None
    for name in table.methods:
        if name not in found:
            raise ValueError(f"table: unknown row {name!r}{nearest(name, found)}")
    return {name: found[name] for name in table.methods or found}


def runs(table: TextTableConfig, rates: dict[tuple[str, str], float], *, split: str = "test") -> list[TextRunConfig]:
    """Every run, seeds outermost; `rates` holds the learning rate of a method on a task (of a joint run: "joint")."""
    for task in table.tasks:
        check_choice("text task", task, TASKS[table.suite])
    groups = [table.tasks] if table.joint else [(task,) for task in table.tasks]
    seeds = table.seeds if split == "test" else (CHOOSING_SEED,)
    return [
        _run(table, name, adapter, tasks, seed, rates.get((name, label(tasks)), table.lr), split)
        for seed in seeds
        for tasks in groups
        for name, adapter in adapters(table).items()
    ]


def label(tasks: Sequence[str]) -> str:
    """What a run is about: its task, or "joint"."""
    return tasks[0] if len(tasks) == 1 else "joint"


def _run(
    table: TextTableConfig,
    name: str,
    adapter: AdapterConfig | None,
    tasks: Sequence[str],
    seed: int,
    lr: float,
    split: str,
) -> TextRunConfig:
    full = name == "every weight"
    return TextRunConfig(
        suite=table.suite, data_root=table.data_root, tasks=tuple(tasks),
        model=table.model, method=name, full=full, classifier=table.classifier, seed=seed,
        adapter=None if adapter is None else dataclasses.replace(adapter, seed=seed),
        train=TrainConfig(steps=table.steps, lr=lr * (FULL_LR_RATIO if full else 1.0), schedule="linear", warmup=0.06),
        batch=table.batch, examples=table.examples, split=split,
    )  # fmt: skip


def choosing_runs(table: TextTableConfig) -> list[TextRunConfig]:
    """The runs on the validation split from which every method's learning rate is chosen, task by task."""
    return [run for lr in table.lr_grid for run in runs(dataclasses.replace(table, lr=lr), {}, split="val")]


def chosen_rates(rows: Sequence[dict]) -> dict[tuple[str, str], float]:
    """(method, task or "joint") -> the rate of the best mean accuracy on the validation split."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for row in rows:
        config = row["config"]
        if config["split"] != "val":
            continue
        lr = config["train"]["lr"] / (FULL_LR_RATIO if config["full"] else 1.0)
        key = config["method"], label(config["tasks"])
        if key not in best or row["results"]["mean"] > best[key][0]:
            best[key] = (row["results"]["mean"], lr)
    return {key: lr for key, (_, lr) in best.items()}


def report(rows: Sequence[dict], table: TextTableConfig) -> list[Table]:
    """Accuracy by task and on their mean, and each row against LoRA, paired by seed."""
    whole = _by_seed([row for row in latest(rows) if row["config"]["split"] == "test"], table)
    title = f"{'joint training' if table.joint else 'one task at a time'}, {table.model}"
    metrics = {f"accuracy.{task}": task for task in table.tasks} | {"mean": "mean", "num_params": "parameters"}
    tables = [summary_table(whole, metrics, title=f"{title}: accuracy, %", percent=True)]
    names = list(dict.fromkeys(row["config"]["method"] for row in whole))
    others = [name for name in names if name != REFERENCE]
    if REFERENCE in names and others and len({row["seed"] for row in whole}) > 1:
        found = comparison(whole, metric="mean", treatment_methods=others, baseline_methods=(REFERENCE,), size=None)
        tables.append(comparison_table(found, title=f"{title}: against LoRA"))
    return tables


def _by_seed(rows: Sequence[dict], table: TextTableConfig) -> list[dict]:
    """One row for every method and seed that has all tasks: its accuracies side by side; ValueError if none has."""
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        joint = len(row["config"]["tasks"]) > 1
        if joint == table.joint and row["config"]["model"] == table.model:
            groups.setdefault((row["config"]["method"], row["seed"]), []).append(row)
    found = []
    for members in groups.values():
        accuracy = {task: value for row in members for task, value in row["results"]["accuracy"].items()}
        if set(accuracy) >= set(table.tasks):
            mean = sum(accuracy[task] for task in table.tasks) / len(table.tasks)
            results = {**members[0]["results"], "accuracy": accuracy, "mean": mean}
            found.append({**members[0], "results": results})
    if not found:
        raise ValueError(f"no method has a row on each of {', '.join(table.tasks)}")
    return found
