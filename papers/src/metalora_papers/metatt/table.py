"""MetaTT's tables and figures on text that is at hand: which runs each takes, and how they are reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from metalora._util.suggest import check_choice, nearest
from metalora.config import AdapterConfig, ConditionConfig, RankScheduleConfig, TrainConfig
from metalora_papers.config import TEXT_TABLES, TextRunConfig, TextTableConfig
from metalora_papers.metatt import glue, news
from metalora_papers.metatt.text import load_encoder
from metalora_papers.metatt.transfer import transfer_rows
from metalora_papers.rates import best_rates
from metalora_papers.report import Table, comparison, comparison_table, latest, summary_table
from metalora_papers.tenslora import table as tenslora_table

TASKS = {"news": tuple(news.TASKS), "glue": tuple(glue.TASKS)}
CHOOSING_SEED = 1000
FULL_LR_RATIO = 0.01
HEAD, FULL, GENERATED, WIDE = "head alone", "every weight", "metatt-4+1d generated", "metatt-4d, more targets"
LORA_QKV = "lora on q, k, v"


@dataclass(frozen=True)
class Job:
    """One row of a comparison on one task, or on several trained together; repeated for every seed."""

    name: str
    tasks: tuple[str, ...]
    adapter: AdapterConfig | None
    lr: float | None = None
    """None: the table's, or the one that validation chose"""
    rank_schedule: RankScheduleConfig | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What one table or figure of the paper compares: its jobs, and the row that the others are measured against."""

    jobs: Callable[[TextTableConfig], list[Job]]
    reference: str = ""


# ---- adapters -------------------------------------------------------------------------------------------------------
def _adapter(table: TextTableConfig, method: str, *, rank: int = 0, init: str = "", tasks: int = 1) -> AdapterConfig:
    """A row's adapter; the tensor trains share `table.alpha`, LoRA has a scale of two."""
    rank, common = rank or table.rank, dict(targets=table.targets, condition=ConditionConfig(scope="constant"))
    if method == "lora":
        return AdapterConfig("lora", rank, alpha=2.0 * rank, **common)
    zero, first, *rest = (init or table.init).split("-")
    codes = {
        "metatt-4d": [zero, first, *rest],
        "metatt-5d": [zero, first, *rest[:1], "id", *rest[1:]],
        "metatt-4+1d": [zero, first, "id", *rest],
    }
    if method not in codes:
        raise ValueError(f"table: unknown method {method!r}{nearest(method, codes)}")
    return AdapterConfig(method, rank, alpha=table.alpha, init="-".join(codes[method]), tasks=tasks, **common)


def _rows(table: TextTableConfig, joint: bool) -> dict[str, AdapterConfig | None]:
    """Row name -> adapter: the head alone, LoRA, the tensor trains, and (of joint training) a task core."""
    found: dict[str, AdapterConfig | None] = {HEAD: None}
    found |= {name: _adapter(table, name) for name in ("lora", "metatt-4d", "metatt-5d")}
    if joint:
        found["metatt-4+1d"] = _adapter(table, "metatt-4+1d", tasks=len(table.tasks))
    if table.wide_targets:
        found[WIDE] = dataclasses.replace(_adapter(table, "metatt-4d"), targets=table.wide_targets)
    if table.full:
        found[FULL] = None
    return found


def _generated(table: TextTableConfig) -> AdapterConfig:
    """MetaTT-(4+1)D whose task core a mapping net makes from a labelled support set."""
    condition = ConditionConfig(scope="support", hidden=16)
    return dataclasses.replace(_adapter(table, "metatt-4+1d"), generated=("G3",), condition=condition)


# ---- the comparisons ------------------------------------------------------------------------------------------------
def _single(table: TextTableConfig) -> list[Job]:
    return [
        Job(name, (task,), adapter, left_out=_others(table, task))
        for task in table.tasks
        for name, adapter in _rows(table, joint=False).items()
    ]


def _joint(table: TextTableConfig) -> list[Job]:
    return [Job(name, table.tasks, adapter) for name, adapter in _rows(table, joint=True).items()]


def _sweeps(table: TextTableConfig) -> list[Job]:
    low, high, steps = table.final_rank, table.rank, table.steps
    first, last = table.sweep_between
    after = (round(steps * (first + (last - first) * k / max(1, table.sweeps - 1))) for k in range(table.sweeps))
    schedule = dataclasses.replace(table.sweep, steps=tuple(after), final=low)
    jobs = []
    for task in table.tasks:
        jobs += [
            Job(f"{table.method}, rank {low}", (task,), _adapter(table, table.method, rank=low)),
            Job(f"{table.method}, rank {high}", (task,), _adapter(table, table.method)),
            Job(f"{table.method}, rank {high} swept to {low}", (task,), _adapter(table, table.method), None, schedule),
        ]
    return jobs


def _inits(table: TextTableConfig) -> list[Job]:
    return [
        Job(f"{table.method}, {init}", (task,), _adapter(table, table.method, init=init))
        for task in table.tasks
        for init in table.inits
    ]


def _rates(table: TextTableConfig) -> list[Job]:
    return [
        Job(f"{name}, lr {lr:g}", (task,), adapter, lr)
        for task in table.tasks
        for name, adapter in _rows(table, joint=False).items()
        for lr in table.lr_grid
        if adapter is not None
    ]


def _ranks(table: TextTableConfig) -> list[Job]:
    return [
        Job(f"{name}, rank {rank}", (task,), _adapter(table, name, rank=rank))
        for task in table.tasks
        for name in ("lora", "metatt-4d", "metatt-5d")
        for rank in table.ranks
    ]


def _transfer(table: TextTableConfig) -> list[Job]:
    jobs = [job for job in _single(table) if job.name in (HEAD, "lora", "metatt-4d")]
    for task in table.tasks:
        jobs.append(Job("metatt-4d", _others(table, task), _adapter(table, "metatt-4d"), left_out=(task,)))
        jobs.append(Job(GENERATED, _others(table, task), _generated(table), left_out=(task,)))
    return jobs


@cache
def _protocols(table: TextTableConfig) -> dict[str, AdapterConfig]:
    lora = dataclasses.replace(_adapter(table, "lora"), targets=table.qkv_targets)
    return {LORA_QKV: lora, **tenslora_table.protocol_rows(load_encoder(table.model)[0], lora)}


def _tenslora(table: TextTableConfig) -> list[Job]:
    return [Job(name, (task,), adapter) for task in table.tasks for name, adapter in _protocols(table).items()]


def _others(table: TextTableConfig, task: str) -> tuple[str, ...]:
    return tuple(other for other in table.tasks if other != task)


COMPARISONS = {
    "metatt-2": Comparison(_single, "lora"),
    "metatt-3": Comparison(_joint, "metatt-4d"),
    "metatt-4": Comparison(_sweeps, "{method}, rank {final_rank}"),
    "metatt-fig4": Comparison(_inits, "{method}, ze-id-id-id"),
    "metatt-fig7": Comparison(_rates),
    "metatt-fig9": Comparison(_ranks),
    "metatt-transfer": Comparison(_transfer),
    "tenslora": Comparison(_tenslora, LORA_QKV),
}


# ---- runs -----------------------------------------------------------------------------------------------------------
def jobs_of(name: str, table: TextTableConfig) -> list[Job]:
    """The jobs of a comparison that the table asks for; ValueError for names that are not known."""
    for task in table.tasks:
        check_choice("text task", task, TASKS[table.suite])
    jobs = COMPARISONS[name].jobs(table)
    known = dict.fromkeys(job.name for job in jobs)
    for method in table.methods:
        if method not in known:
            raise ValueError(f"table {name}: unknown row {method!r}{nearest(method, known)}")
    return [job for job in jobs if not table.methods or job.name in table.methods]


def runs(name: str, table: TextTableConfig, rates: dict[tuple[str, str], float]) -> list[TextRunConfig]:
    """Every run, seeds outermost; `rates` holds the learning rate of a row on a task, or on several together."""
    jobs = jobs_of(name, table)
    return [_run(table, job, seed, job.lr or rates.get(_label(job), table.lr)) for seed in table.seeds for job in jobs]


def choosing_runs(name: str, table: TextTableConfig) -> list[TextRunConfig]:
    """The runs on the validation split from which every row's learning rate is chosen, task by task."""
    jobs = [dataclasses.replace(job, left_out=()) for job in jobs_of(name, table) if job.lr is None]
    return [_run(table, job, CHOOSING_SEED, lr, split="val") for lr in table.lr_grid for job in jobs]


def chosen_rates(rows: Sequence[dict]) -> dict[tuple[str, str], float]:
    """(row, tasks) -> the rate of the best mean accuracy on the validation split."""
    return best_rates(rows, _row_label, lambda row: row["results"]["mean"], _rate)


def _rate(row: dict) -> float:
    """The table's learning rate that a row was run at."""
    return row["config"]["train"]["lr"] / (FULL_LR_RATIO if row["config"]["full"] else 1.0)


def _row_label(row: dict) -> tuple[str, str]:
    return row["config"]["method"], "+".join(row["config"]["tasks"])


def _label(job: Job) -> tuple[str, str]:
    return job.name, "+".join(job.tasks)


def _run(table: TextTableConfig, job: Job, seed: int, lr: float, split: str = "test") -> TextRunConfig:
    full = job.name == FULL
    return TextRunConfig(
        suite=table.suite, data_root=table.data_root, tasks=job.tasks, left_out=job.left_out,
        model=table.model, method=job.name, full=full, classifier=table.classifier, seed=seed,
        adapter=None if job.adapter is None else dataclasses.replace(job.adapter, seed=seed),
        train=TrainConfig(
            steps=table.steps, lr=lr * (FULL_LR_RATIO if full else 1.0), schedule="linear", warmup=0.06,
            mixed_precision=table.mixed_precision, rank_schedule=job.rank_schedule,
        ),
        batch=table.batch, examples=table.examples, test_examples=table.test_examples, max_length=table.max_length,
        split=split, evaluate_every=table.evaluate_every if split == "test" else 0,
    )  # fmt: skip


# ---- reports --------------------------------------------------------------------------------------------------------
def rows_of(name: str, rows: Sequence[dict], table: TextTableConfig) -> list[dict]:
    """The test rows of a comparison among all that a file holds; ValueError if there is none.

    Where the rows hold a choice on the validation split, those at a learning rate that was not chosen are left out.
    """
    wanted = {_label(job): job.lr for job in jobs_of(name, table)}
    own = [row for row in latest(rows) if row["config"]["model"] == table.model and _row_label(row) in wanted]
    rates = chosen_rates(own)
    found = []
    for row in own:
        chosen = rates.get(_row_label(row)) if wanted[_row_label(row)] is None else None
        if row["config"]["split"] == "test" and chosen in (None, _rate(row)):
            found.append(row)
    if not found:
        raise ValueError(f"table {name}: no row of {table.model} on {', '.join(table.tasks)}")
    return found


def report(name: str, rows: Sequence[dict], table: TextTableConfig) -> list[Table]:
    """Accuracy by task and on their mean, with half the 95 % interval over seeds, and each row against the reference,
    paired by seed."""
    own, kind = rows_of(name, rows, table), COMPARISONS[name]
    title = f"{TEXT_TABLES[name]}, {table.model}"
    metrics: dict[str, str] = {f"accuracy.{task}": task for task in table.tasks} | {"mean": "mean"}
    if name == "metatt-transfer":
        whole, reference = transfer_rows(own, table.tasks)
    else:
        whole, reference = by_seed(own, table.tasks), kind.reference.format(**dataclasses.asdict(table))
        metrics |= {"num_params": "parameters", "seconds": "seconds a run"}
    tables = [summary_table(whole, metrics, title=f"{title}: accuracy, %", percent=True)]
    names = list(dict.fromkeys(row["config"]["method"] for row in whole))
    others = [method for method in names if method != reference]
    if reference in names and others and len({row["seed"] for row in whole}) > 1:
        found = [
            one
            for metric in ("mean", *(f"accuracy.{task}" for task in table.tasks))
            for one in comparison(
                whole, metric=metric, treatment_methods=others, baseline_methods=(reference,), size=None
            )
        ]
        tables.append(comparison_table(found, title=f"{title}: against {reference}"))
    return tables


def by_seed(rows: Sequence[dict], tasks: Sequence[str]) -> list[dict]:
    """One row for every method and seed that has all tasks: its accuracies side by side.

    ValueError: no method has all, or one has a task twice (rows of several settings).
    """
    groups: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["config"]["method"], row["seed"]), []).append(row)
    found = []
    for (method, seed), members in groups.items():
        accuracy: dict[str, float] = {}
        for row in members:
            for task, value in row["results"]["accuracy"].items():
                if task in accuracy:
                    raise ValueError(f"{method!r} has seed {seed} on {task!r} twice: the rows are of several settings")
                accuracy[task] = value
        if set(accuracy) >= set(tasks):
            found.append(merged_row(members, {task: accuracy[task] for task in tasks}))
    if not found:
        raise ValueError(f"no method has a row on each of {', '.join(tasks)}")
    return found


def merged_row(members: Sequence[dict], accuracy: dict[str, float]) -> dict[str, Any]:
    """A row that stands for several of one method and seed."""
    mean = sum(accuracy.values()) / len(accuracy)
    seconds = round(sum(row["time"]["seconds"] for row in members) / len(members))
    results = {**members[0]["results"], "accuracy": accuracy, "mean": mean, "seconds": seconds}
    return {**members[0], "results": results}
