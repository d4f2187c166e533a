"""Table I of MetaLoRA, on data that can be rerun: which runs it takes, and how they are compared."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch

from metalora._util.suggest import nearest
from metalora.adapters.attach import attach, detach
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig
from metalora.methods.records import SplitRank
from metalora.methods.registry import get_method
from metalora.zoo import load_model
from metalora_papers.config import BackboneConfig, RunConfig, TableConfig
from metalora_papers.metalora.backbones import build
from metalora_papers.metalora.vision import matched_rank
from metalora_papers.rates import best_rates
from metalora_papers.report import Table, comparison, comparison_table, latest, plot_bars, summary_table
from metalora_papers.tenslora import table as tenslora_table

GENERATED = ("metalora-cp", "metalora-tr")
PLAIN = "stats + LDA"
AT_RANK = " at rank "  # rows beside the main ones; they take the learning rate of their method
STATIC = ("lora", "multi-lora", "moe-lora")


def condition(table: TableConfig) -> ConditionConfig:
    """The condition of the generated methods: a labelled support set for attributes, the input itself else."""
    scope = "support" if table.suite == "attributes" else "sample"
    return ConditionConfig(
        scope=scope, hidden=table.hidden, heads=table.heads, descriptor_dropout=table.descriptor_dropout
    )


def compared(table: TableConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The rows that are measured, and those that they are measured against."""
    return (GENERATED, STATIC) if table.compare == "metalora" else (tenslora_table.NAMES, ("lora",))


def adapters(table: TableConfig) -> dict[str, AdapterConfig | None]:
    """Row name -> adapter, of the rows that the table asks for; ValueError for names that are not known."""
    found = _table_one(table) if table.compare == "metalora" else _tenslora(table)
    for name in table.methods:
        if name not in found:
            raise ValueError(f"table: unknown row {name!r}{nearest(name, found)}")
    return {name: found[name] for name in table.methods or found}


def _backbone(table: TableConfig) -> torch.nn.Module:
    model = load_model(table.model, weights=False) if table.model else build(table.backbone, _size(table), 6)
    model.reset_classifier(0)
    return model


def _size(table: TableConfig) -> int:
    return table.size if table.suite == "attributes" else 28


def _tenslora(table: TableConfig) -> dict[str, AdapterConfig | None]:
    constant = ConditionConfig(scope="constant")
    lora = AdapterConfig("lora", table.rank, alpha=2.0 * table.rank, targets=("attn.qkv",), condition=constant)
    return {"original": None, "lora": lora, **tenslora_table.protocol_rows(_backbone(table), lora)}


def _table_one(table: TableConfig) -> dict[str, AdapterConfig | None]:
    """Every static method at the smallest rank whose count reaches that of CP and TR."""
    made = condition(table)
    found: dict[str, AdapterConfig | None] = {
        "original": None,
        "metalora-cp": AdapterConfig("metalora-cp", table.rank, condition=made, clip_rank=True),
        "metalora-tr": AdapterConfig("metalora-tr", table.ring_rank, condition=made, clip_rank=True),
    }
    model = _backbone(table)
    budget = max(_count(model, found[name], _size(table)) for name in GENERATED)
    constant = ConditionConfig(scope="constant")
    for name in STATIC:
        config = AdapterConfig(name, clip_rank=True, condition=constant)
        rank = matched_rank(model, config, budget)
        found[name] = dataclasses.replace(config, rank=rank)
        if table.equal_rank:
            found[f"{name}{AT_RANK}{table.rank}"] = dataclasses.replace(config, rank=_equal_rank(config, table.rank))
    if table.equal_rank:
        name = f"metalora-cp{AT_RANK}{table.ring_rank}"
        found[name] = dataclasses.replace(found["metalora-cp"], rank=table.ring_rank)
    return found


def _equal_rank(config: AdapterConfig, rank: int) -> int:
    """The largest rank that is no more than `rank` over all experts together."""
    method = get_method(config.method)
    if not method.uses_experts:
        return rank
    return rank - rank % config.experts if method.has(SplitRank) else rank // config.experts


def _count(model: torch.nn.Module, config: AdapterConfig, size: int) -> int:
    count = attach(model, config, example=torch.zeros(1, 3, size, size)).num_params()
    detach(model)
    return count


def runs(table: TableConfig, rates: dict[str, float], *, split: str = "test") -> list[RunConfig]:
    """Every run of the table, seeds outermost, so that a table that is cut off has whole seeds first."""
    made = adapters(table)
    seeds = table.seeds if split == "test" else (1000,)  # hyper-parameters have a seed of their own
    return [
        _run(table, name, adapter, seed, rates.get(name.split(AT_RANK)[0], table.lr), split)
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
    episodes = dataclasses.replace(
        config.episodes, trained=table.trained, held_out=table.held_out, size=table.size, class_ways=table.class_ways,
        blended_classes=table.blended_classes,
    )  # fmt: skip
    config = dataclasses.replace(config, model=table.model, episodes=episodes)
    loss = table.loss or ("contrastive" if table.suite == "natural" else "distillation")
    domains = dataclasses.replace(config.domains, loss=loss)
    if table.suite == "natural":  # the smallest of its sets has 40 test images a class
        domains = dataclasses.replace(domains, per_class=16, queries=40)
    return dataclasses.replace(config, domains=domains)


def choosing_runs(table: TableConfig) -> list[RunConfig]:
    """The runs on the validation split from which each method's learning rate is chosen."""
    return [
        run
        for lr in table.lr_grid
        for run in runs(dataclasses.replace(table, lr=lr, equal_rank=False), {}, split="val")
    ]


def headline(suite: str) -> dict[str, str]:
    """The metrics of a suite and their labels; the first chooses the learning rate, the first two are compared."""
    if suite == "attributes":
        return {
            "k5.trained_mean": "trained notions",
            "k5.unseen_class": "unseen classes",
            "k5.held_out_mean": "never trained",
            "other_support.trained_mean": "another's support",
        }
    cells = {
        "unseen_domain_seen_class": "unseen domain, seen class",
        "unseen_domain_unseen_class": "unseen domain, unseen class",
    }
    if suite == "natural":  # a real image has no clean version: both banks are one
        return {f"own.k5.{cell}": label for cell, label in cells.items()}
    return {f"{bank}.k5.{cell}": f"{bank} bank: {label}" for bank in ("clean", "own") for cell, label in cells.items()}


def beside(suite: str) -> dict[str, str]:
    """Further columns: other K, plain baselines, and the metric that the support set itself chooses."""
    if suite == "attributes":
        return {
            "k10.trained_mean": "trained K=10",
            "lda.trained_mean": "trained, LDA",
            "selected.trained_mean": "trained, selected",
            "selected.held_out_mean": "never trained, selected",
        }
    cells = ("seen_domain_seen_class", "seen_domain_unseen_class")
    found = {f"clean.k5.{cell}": cell.replace("_", " ") for cell in cells}
    found |= {
        f"{name}_condition": f"{name.replace('_', ' ')} c" for name in ("own", "domain_mean", "global_mean", "other")
    }
    return found | {"domain_share": "domain share"}


def chosen_rates(rows: list[dict], suite: str) -> dict[str, float]:
    """Method -> the learning rate with the best first headline metric on the validation split."""
    metric = next(iter(headline(suite)))
    return best_rates(
        rows,
        lambda row: row["config"]["method"],
        lambda row: _value(row, metric),
        lambda row: row["config"]["train"]["lr"],
    )


def rows_of(rows: list[dict], table: TableConfig) -> list[dict]:
    """The test rows of this suite, data, backbone and trained notions; ValueError if there is none.

    Where the rows hold a choice on the validation split, those at a learning rate that was not chosen are left out.
    """
    data = "" if table.suite == "natural" else table.data
    known = {"original", *(name for side in compared(table) for name in side)}
    found = [
        row
        for row in latest(rows)
        if (row["suite"], row["config"]["data"]) == (table.suite, data)
        and row["config"]["backbone"]["architecture"] == table.backbone
        and row["config"].get("model", "") == table.model  # rows of before that field have none
        and row["config"]["method"].split(AT_RANK)[0] in known
        and (not table.methods or row["config"]["method"] in table.methods)
        and (table.suite != "attributes" or tuple(row["config"]["episodes"]["trained"]) == table.trained)
    ]
    rates = chosen_rates(found, table.suite)
    found = [row for row in found if row["config"]["split"] == "test" and _at_chosen_rate(row, rates)]
    if not found:
        raise ValueError(f"no test row of suite {table.suite!r}, data {data!r}, backbone {table.backbone!r}")
    return found


def _at_chosen_rate(row: dict, rates: dict[str, float]) -> bool:
    lr = row["config"]["train"]["lr"]
    return rates.get(row["config"]["method"].split(AT_RANK)[0], lr) == lr


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
    title = _title(table)
    trained, rows = rows, rows + plain_rows(rows)
    metrics = _present(rows, headline(table.suite)) | {"num_params": "parameters"}
    found = Report([summary_table(rows, metrics, title=f"{title}: k-NN, K=5, %", percent=True)])
    further = _present(trained, beside(table.suite))
    found.tables.append(summary_table(trained, further, title=f"{title}: beside it, %", percent=True))
    names, (treatments, baselines) = {row["config"]["method"] for row in rows}, compared(table)
    if len({row["seed"] for row in rows}) > 1 and names >= {*treatments, *baselines}:
        size = "num_params" if table.compare == "metalora" else None
        for metric in list(metrics)[:2]:
            found.comparisons += comparison(
                rows, metric=metric, treatment_methods=treatments, baseline_methods=baselines, size=size
            )
            if PLAIN in names:
                found.comparisons += comparison(
                    rows, metric=metric, treatment_methods=treatments, baseline_methods=(PLAIN,), size=None
                )
        found.tables.append(comparison_table(found.comparisons, title=f"{title}: against the best baseline"))
    return found


def plain_rows(rows: list[dict]) -> list[dict]:
    """The strong baseline without training, LDA on the frozen backbone's stage statistics, as rows of its own."""
    return [
        {
            **row,
            "key": f"{row['key']}-stats",
            "config": {**row["config"], "method": PLAIN},
            "results": {
                "k5": row["results"]["stats_lda"],
                "num_params": 0,
                "nested": [
                    {**counts, "metric": counts["metric"].replace("stats_lda", "k5")}
                    for counts in row["results"].get("nested", ())
                    if counts["metric"].startswith("stats_lda.")
                ],
            },
        }
        for row in rows
        if row["config"]["method"] == "original" and "stats_lda" in row["results"]
    ]


def _value(row: dict, metric: str) -> float | None:
    value = row["results"]
    for part in metric.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _present(rows: list[dict], metrics: dict[str, str]) -> dict[str, str]:
    return {name: label for name, label in metrics.items() if any(_value(row, name) is not None for row in rows)}


def plot(rows: list[dict], table: TableConfig, path: Path) -> None:
    """The headline metrics as bars."""
    metrics = _present(rows, headline(table.suite))
    plot_bars(rows, metrics, path, title=_title(table))


def _title(table: TableConfig) -> str:
    data = "real sets" if table.suite == "natural" else table.data
    return f"suite {table.suite}, {data}, {table.backbone}"
