"""What each table and figure on text compares: its jobs, one for every row and task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from metalora._util.suggest import check_choice, nearest
from metalora.adapters.attach import count_params
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig, ConditionConfig, TwoSiteConfig
from metalora.methods.registry import METHODS, get_method
from metalora.ranks.allocation import ranks_by_spectra
from metalora.ranks.two_site import bond_visits
from metalora_papers.comparison import RateKey
from metalora_papers.config import TextTableConfig
from metalora_papers.metatt import glue, news
from metalora_papers.metatt.line_up import (
    FROZEN,
    HEAD,
    Trained,
    adapter_for,
    core_codes,
    is_row,
    trained_by,
)
from metalora_papers.metatt.text import encoder_without_weights, load_encoder
from metalora_papers.runs import ALIASES, FULL
from metalora_papers.tenslora import table as tenslora_table

TASKS = {"news": tuple(news.TASKS), "glue": tuple(glue.TASKS)}
GENERATED, WIDE = "metatt-4+1d generated", "metatt-4d, more targets"
LORA_QKV = "lora on q, k, v"
GAUSSIAN = "lora, gaussian"
TWO_SITE = "two-site"
Rows = Mapping[str, Trained]
"""Name of a row -> what it trains."""


@dataclass(frozen=True)
class Job:
    """One row of a comparison on one task, or on several trained together; repeated for every seed."""

    name: str
    tasks: tuple[str, ...]
    trained: Trained
    lr: float | None = None
    """None: the table's, or the one that validation chose"""
    left_out: tuple[str, ...] = ()
    """tasks that are only scored, from a few labelled examples"""
    phases: tuple[str, ...] = ()
    """the tasks one after another; empty: together"""
    series: str = ""
    """of a point of a curve over a setting: the name of the curve"""

    @property
    def rate_key(self) -> RateKey:
        """The row and its tasks: what a learning rate is chosen for."""
        return self.name, tasks_key(self.tasks, self.phases)


def tasks_key(tasks: Sequence[str], phases: Sequence[str]) -> str:
    """Return tasks that are trained together, or one after another, as one name.

    Example:
        >>> tasks_key(("a", "b"), ()), tasks_key(("a", "b"), ("a", "b", "a"))
        ('a+b', 'a > b > a')
    """
    return " > ".join(phases) if phases else "+".join(tasks)


@dataclass(frozen=True)
class Design:
    """What one table or figure of the paper compares.

    Attributes:
        jobs: From the settings of the table, and further rows that were asked for by name, to its jobs.
        reference: The row that the others are measured against, with the fields of the settings in braces.
        joint: One adapter has all tasks.
        open: It takes further rows: any method by name.
        named: From the settings and the name of a row that this table alone has, if it is asked for, to what the row
            trains; None for another name.
    """

    jobs: Callable[[TextTableConfig, Rows], list[Job]]
    reference: str = ""
    joint: bool = False
    open: bool = True
    named: Callable[[TextTableConfig, str], Trained | None] = lambda table, name: None


# ---- rows -----------------------------------------------------------------------------------------------------------
def _rows(table: TextTableConfig, joint: bool) -> dict[str, Trained]:
    """The head alone, LoRA, the tensor trains, and (of joint training) a task core."""
    names = [HEAD, "lora", "metatt-4d", "metatt-5d", *(["metatt-4+1d"] if joint else [])]
    rows = {name: trained_by(table, name, len(table.tasks)) for name in names}
    if table.wide_targets:
        rows[WIDE] = Trained(dataclasses.replace(adapter_for(table, "metatt-4d"), targets=table.wide_targets))
    if table.full:
        rows[FULL] = trained_by(table, FULL)
    return rows


def _each_task(table: TextTableConfig, rows: Rows) -> list[Job]:
    return [Job(name, (task,), trained) for task in table.tasks for name, trained in rows.items()]


def _generated(table: TextTableConfig) -> AdapterConfig:
    """MetaTT-(4+1)D whose task core a mapping net makes from a labelled support set."""
    condition = ConditionConfig(scope="support", hidden=16)
    return dataclasses.replace(adapter_for(table, "metatt-4+1d"), generated=("G3",), condition=condition)


# ---- the comparisons ------------------------------------------------------------------------------------------------
def _single(table: TextTableConfig, further: Rows) -> list[Job]:
    jobs = _each_task(table, {**_rows(table, joint=False), **further})
    return [dataclasses.replace(job, left_out=_others(table, job.tasks[0])) for job in jobs]


def _joint(table: TextTableConfig, further: Rows) -> list[Job]:
    rows = {**_rows(table, joint=True), **further}
    return [Job(name, table.tasks, trained) for name, trained in rows.items()]


def _sweeps(table: TextTableConfig, further: Rows) -> list[Job]:
    low, high, plain, swept = _sweep_rows(table)
    rows = {low: plain, high: Trained(swept.adapter), f"{high} swept to {table.final_rank}": swept}
    return _each_task(table, {**rows, **further})


def _sweep_rows(table: TextTableConfig) -> tuple[str, str, Trained, Trained]:
    """The names of the rows at the final and at the first rank, AdamW at the final rank, and sweeps down to it."""
    first, last = table.sweep_between
    shares = (first + (last - first) * k / max(1, table.sweeps - 1) for k in range(table.sweeps))
    after = tuple(round(table.steps * share) for share in shares)
    schedule = dataclasses.replace(table.sweep, steps=after, final=table.final_rank)
    plain = Trained(adapter_for(table, table.method, rank=table.final_rank))
    swept = Trained(adapter_for(table, table.method, rank=table.rank), rank_schedule=schedule)
    return f"{table.method}, rank {table.final_rank}", f"{table.method}, rank {table.rank}", plain, swept


def _future_row(table: TextTableConfig, name: str) -> Trained | None:
    """What the paper leaves to future work: sweeps by importance, two-site DMRG, and ranks of each bond."""
    low, high, plain, swept = _sweep_rows(table)
    down = f"{high} swept to {table.final_rank}"
    assert swept.rank_schedule is not None
    if name == f"{down} by importance":
        return dataclasses.replace(
            swept, rank_schedule=dataclasses.replace(swept.rank_schedule, importance="sensitivity")
        )
    if name == f"{low}, {TWO_SITE}":
        return dataclasses.replace(plain, two_site=_two_site(table))
    if name == f"{down}, {TWO_SITE}":
        return dataclasses.replace(swept, rank_schedule=None, two_site=_two_site(table))
    if name == f"{table.method}, {tenslora_table.BY_SPECTRA}":
        return _by_spectra(table)
    return None


def _two_site(table: TextTableConfig) -> TwoSiteConfig:
    """All bonds to the right and back while other rows are swept, each for as many steps, down to the final rank."""
    first, last = table.sweep_between
    visits = len(bond_visits(len(get_method(table.method).rank_bonds), sweeps=1))
    bond_steps = round(table.steps * (last - first)) // visits
    return TwoSiteConfig(bond_steps=bond_steps, start=round(table.steps * first), rank=table.final_rank)


@cache
def _by_spectra(table: TextTableConfig) -> Trained:
    """Ranks that the spectra of the weights choose for the number of parameters of the row at the final rank."""
    adapter, model = adapter_for(table, table.method, rank=table.final_rank), load_encoder(table.model)[0]
    budget = count_params(adapter, find_targets(model, adapter.targets))
    return Trained(ranks_by_spectra(model, adapter, budget))


def _inits(table: TextTableConfig, further: Rows) -> list[Job]:
    trains = core_codes(table.init)
    if table.method in METHODS and table.method not in trains:
        raise ValueError(
            f"table metatt-fig4: {table.method} has no train of cores that could start in several ways; "
            f"the methods that have one are {', '.join(trains)}"
        )
    rows = {f"{table.method}, {init}": Trained(adapter_for(table, table.method, init=init)) for init in table.inits}
    return _each_task(table, {**rows, **further})


def _lora_starts(table: TextTableConfig, further: Rows) -> list[Job]:
    """LoRA that starts as normal numbers of deviation 1 / rank (PEFT's "gaussian") and zeros, PiSSA, and OLoRA."""
    default = TextTableConfig()
    if table.method not in ("lora", default.method):
        raise ValueError(f"table metatt-fig11: it compares starts of lora; method {table.method!r} does not apply")
    if table.inits != default.inits:
        raise ValueError(
            "table metatt-fig11: inits are those of a train of cores, for metatt-fig4; "
            f"the starts of lora are methods: {GAUSSIAN!r}, 'pissa', 'olora'"
        )
    lora = adapter_for(table, "lora")
    gaussian = dataclasses.replace(lora, init={"A": f"normal:{1 / table.rank}"})
    rows = {GAUSSIAN: Trained(gaussian), **{name: trained_by(table, name) for name in ("pissa", "olora")}}
    return _each_task(table, {**rows, **further})


def _rates(table: TextTableConfig, further: Rows) -> list[Job]:
    if not table.lr_grid:
        raise ValueError("table metatt-fig7: it has a point for every learning rate; give lr_grid")
    rows = {**_rows(table, joint=False), **further}
    return [
        Job(f"{name}, lr {lr * trained.lr_ratio:g}", (task,), trained, lr, series=name)
        for task in table.tasks
        for name, trained in rows.items()
        for lr in table.lr_grid
        if name not in (HEAD, FROZEN)
    ]


def _ranks(table: TextTableConfig, further: Rows) -> list[Job]:
    methods = ("lora", "metatt-4d", "metatt-5d", *(name for name in further if name in METHODS))
    return [
        Job(f"{name}, rank {rank}", (task,), trained_by(table, f"{name}, rank {rank}"), series=name)
        for task in table.tasks
        for name in methods
        for rank in table.ranks
    ]


def _sequential(table: TextTableConfig, further: Rows) -> list[Job]:
    if len(table.tasks) != 2:
        given = ", ".join(table.tasks) or "none"
        raise ValueError(f"table metatt-sequential: it has a task A and a task B; give two tasks, got {given}")
    if table.report == "best":
        raise ValueError("table metatt-sequential: its scores are those after each phase; report is last")
    phases = (*table.tasks, table.tasks[0])
    rows = {name: trained_by(table, name, len(table.tasks)) for name in ("lora", "metatt-4d", "metatt-4+1d")}
    return [Job(name, table.tasks, trained, phases=phases) for name, trained in {**rows, **further}.items()]


def _transfer(table: TextTableConfig, further: Rows) -> list[Job]:
    jobs = [job for job in _single(table, {}) if job.name in (HEAD, "lora", "metatt-4d")]
    for task in table.tasks:
        others = _others(table, task)
        jobs.append(Job("metatt-4d", others, Trained(adapter_for(table, "metatt-4d")), left_out=(task,)))
        jobs.append(Job(GENERATED, others, Trained(_generated(table)), left_out=(task,)))
    return jobs


@cache
def _protocols(table: TextTableConfig) -> dict[str, AdapterConfig]:
    lora = _lora_qkv(table)
    return {LORA_QKV: lora, **tenslora_table.protocol_rows(encoder_without_weights(table.model), lora)}


def _lora_qkv(table: TextTableConfig) -> AdapterConfig:
    return dataclasses.replace(adapter_for(table, "lora"), targets=table.qkv_targets)


def _tenslora(table: TextTableConfig, further: Rows) -> list[Job]:
    rows = {name: Trained(adapter) for name, adapter in _protocols(table).items()}
    rows |= {name: _retargeted(trained, table) for name, trained in further.items()}
    return _each_task(table, rows)


@cache
def _protocol_row(table: TextTableConfig, name: str) -> Trained | None:
    """Any method at the rank or at the number of parameters of LoRA on the queries, keys and values."""
    parts = tenslora_table.split_protocol(name)
    if parts is None:
        return None
    method, protocol = parts
    by_spectra = protocol == tenslora_table.BY_SPECTRA
    model = load_encoder(table.model)[0] if by_spectra else encoder_without_weights(table.model)
    trained = _retargeted(trained_by(table, method), table)
    adapter = tenslora_table.protocol_row(model, _lora_qkv(table), name, trained.adapter)
    return dataclasses.replace(trained, adapter=adapter)


def _retargeted(trained: Trained, table: TextTableConfig) -> Trained:
    """Return the row on the queries, keys and values, unless its adapter has targets of its own."""
    if trained.adapter is None or trained.adapter.targets != table.targets:
        return trained
    return dataclasses.replace(trained, adapter=dataclasses.replace(trained.adapter, targets=table.qkv_targets))


def _others(table: TextTableConfig, task: str) -> tuple[str, ...]:
    return tuple(other for other in table.tasks if other != task)


DESIGNS = {
    "metatt-2": Design(_single, "lora"),
    "metatt-3": Design(_joint, "metatt-4d", joint=True),
    "metatt-4": Design(_sweeps, "{method}, rank {final_rank}", named=_future_row),
    "metatt-fig4": Design(_inits, "{method}, ze-id-id-id"),
    "metatt-fig7": Design(_rates),
    "metatt-fig9": Design(_ranks),
    "metatt-fig11": Design(_lora_starts, GAUSSIAN),
    "metatt-sequential": Design(_sequential, "lora", joint=True),
    "metatt-transfer": Design(_transfer, open=False),
    "tenslora": Design(_tenslora, LORA_QKV, named=_protocol_row),
}


# ---- by name ---------------------------------------------------------------------------------------------------------
def jobs_of(name: str, table: TextTableConfig) -> list[Job]:
    """Return the jobs of a table or figure that its settings ask for.

    Rows that a table does not have by default are added by name: any method, "METHOD, rank R", every weight, frozen.

    Args:
        name: Name of the table or figure.
        table: Its settings.

    Raises:
        ValueError: A name that does not exist.
    """
    for task in table.tasks:
        check_choice("text task", task, TASKS[table.suite])
    design = DESIGNS[name]
    chosen = [ALIASES.get(method, method) for method in table.methods]
    known = _names(design.jobs(table, {}))
    further = {
        method: trained for method in chosen if method not in known and (trained := _by_name(design, table, method))
    }
    jobs = design.jobs(table, further)
    names = _names(jobs)
    for method in chosen:
        if method not in names:
            choices = {*names, *METHODS, FROZEN, FULL} if design.open else names
            raise ValueError(f"table {name}: unknown row {method!r}{nearest(method, choices - {method})}")
    return [job for job in jobs if not chosen or not {job.name, job.series}.isdisjoint(chosen)]


def _by_name(design: Design, table: TextTableConfig, name: str) -> Trained | None:
    """Return what a row trains that a table does not have by default; None for an unknown name."""
    if is_row(name):
        return trained_by(table, name, len(table.tasks) if design.joint else 1)
    return design.named(table, name)


def _names(jobs: list[Job]) -> set[str]:
    """Return what `methods` may hold: the names of rows and of curves."""
    return {name for job in jobs for name in (job.name, job.series) if name}
