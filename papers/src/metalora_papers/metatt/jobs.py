"""What each table and figure on text compares: its jobs, one for every row and task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from metalora._util.suggest import check_choice, nearest
from metalora.config import AdapterConfig, ConditionConfig, RankScheduleConfig
from metalora_papers.comparison import RateKey
from metalora_papers.config import TextTableConfig
from metalora_papers.metatt import glue, news
from metalora_papers.metatt.text import encoder_without_weights
from metalora_papers.tenslora import table as tenslora_table

TASKS = {"news": tuple(news.TASKS), "glue": tuple(glue.TASKS)}
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
    """tasks that are only scored, from a few labelled examples"""

    @property
    def rate_key(self) -> RateKey:
        """The row and its tasks: what a learning rate is chosen for."""
        return self.name, "+".join(self.tasks)


@dataclass(frozen=True)
class Design:
    """What one table or figure of the paper compares.

    Attributes:
        jobs: From the settings of the table to its jobs.
        reference: The row that the others are measured against, with the fields of the settings in braces.
    """

    jobs: Callable[[TextTableConfig], list[Job]]
    reference: str = ""


# ---- adapters -------------------------------------------------------------------------------------------------------
def _adapter(table: TextTableConfig, method: str, *, rank: int = 0, init: str = "", tasks: int = 1) -> AdapterConfig:
    """Return the adapter of a row; the tensor trains share `table.alpha`, LoRA has a scale of two."""
    rank, constant = rank or table.rank, ConditionConfig(scope="constant")
    if method == "lora":
        return AdapterConfig("lora", rank, alpha=2.0 * rank, targets=table.targets, condition=constant)
    zero, first, *rest = (init or table.init).split("-")
    codes = {
        "metatt-4d": [zero, first, *rest],
        "metatt-5d": [zero, first, *rest[:1], "id", *rest[1:]],
        "metatt-4+1d": [zero, first, "id", *rest],
    }
    if method not in codes:
        raise ValueError(f"table: unknown method {method!r}{nearest(method, codes)}")
    return AdapterConfig(
        method,
        rank,
        alpha=table.alpha,
        init="-".join(codes[method]),
        tasks=tasks,
        targets=table.targets,
        condition=constant,
    )


def _rows(table: TextTableConfig, joint: bool) -> dict[str, AdapterConfig | None]:
    """Row name -> adapter: the head alone, LoRA, the tensor trains, and (of joint training) a task core."""
    rows: dict[str, AdapterConfig | None] = {HEAD: None}
    rows |= {name: _adapter(table, name) for name in ("lora", "metatt-4d", "metatt-5d")}
    if joint:
        rows["metatt-4+1d"] = _adapter(table, "metatt-4+1d", tasks=len(table.tasks))
    if table.wide_targets:
        rows[WIDE] = dataclasses.replace(_adapter(table, "metatt-4d"), targets=table.wide_targets)
    if table.full:
        rows[FULL] = None
    return rows


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
    return {LORA_QKV: lora, **tenslora_table.protocol_rows(encoder_without_weights(table.model), lora)}


def _tenslora(table: TextTableConfig) -> list[Job]:
    return [Job(name, (task,), adapter) for task in table.tasks for name, adapter in _protocols(table).items()]


def _others(table: TextTableConfig, task: str) -> tuple[str, ...]:
    return tuple(other for other in table.tasks if other != task)


DESIGNS = {
    "metatt-2": Design(_single, "lora"),
    "metatt-3": Design(_joint, "metatt-4d"),
    "metatt-4": Design(_sweeps, "{method}, rank {final_rank}"),
    "metatt-fig4": Design(_inits, "{method}, ze-id-id-id"),
    "metatt-fig7": Design(_rates),
    "metatt-fig9": Design(_ranks),
    "metatt-transfer": Design(_transfer),
    "tenslora": Design(_tenslora, LORA_QKV),
}


# ---- by name ---------------------------------------------------------------------------------------------------------
def jobs_of(name: str, table: TextTableConfig) -> list[Job]:
    """Return the jobs of a table or figure that its settings ask for; ValueError for a name that does not exist."""
    for task in table.tasks:
        check_choice("text task", task, TASKS[table.suite])
    jobs = DESIGNS[name].jobs(table)
    names = dict.fromkeys(job.name for job in jobs)
    for method in table.methods:
        if method not in names:
            raise ValueError(f"table {name}: unknown row {method!r}{nearest(method, names)}")
    return [job for job in jobs if not table.methods or job.name in table.methods]
