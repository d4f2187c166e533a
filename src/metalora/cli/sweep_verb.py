"""The verb sweep: a search over method, rank, learning rate and targets."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from metalora._util.allocator import keep_freed_memory
from metalora._util.number_range import Range
from metalora.cli.learner_verbs import BACKBONES, TABLES, LabelColumns, TaskColumns, TaskFlags, one_task
from metalora.cli.render import ExecutedBy, Json, print_json, progress, show
from metalora.cli.settings_file import finetuning_settings, learner_settings
from metalora.executors.config import ONE_PROCESS
from metalora.learner.sweeps.config import SweepConfig

if TYPE_CHECKING:
    from metalora.learner import SweepResult


def sweep(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER", help="folder of the search")],
    job: Annotated[
        Literal["finetune", "fit"],
        tyro.conf.arg(help="what a trial does. finetune: one task; fit: a learner of many tasks"),
    ],
    backbone: Annotated[str, tyro.conf.arg(help=BACKBONES)],
    data: Annotated[Path, tyro.conf.arg(help=f"{TABLES}, as the verb of --job takes it")],
    columns: TaskFlags = TaskColumns(),  # noqa: B008 (frozen)
    label_columns: LabelColumns = None,
    holdout: Annotated[
        int | None,
        tyro.conf.arg(help="for fit: how many tasks no trial sees; a fifth of five or more"),
        Range(least=0),
    ] = None,
    search: Annotated[SweepConfig, tyro.conf.arg(name="")] = SweepConfig(),  # noqa: B008 (frozen)
    executor: ExecutedBy = ONE_PROCESS,
    settings: Annotated[
        Path | None,
        tyro.conf.arg(name="config", help="YAML file of the settings without a search, as the verb of --job takes it"),
    ] = None,
    steps: Annotated[
        int | None, tyro.conf.arg(help="number of training steps, instead of that of the settings"), Range(least=1)
    ] = None,
    validate_every: Annotated[
        int | None, tyro.conf.arg(help="number of steps between two validations, likewise"), Range(least=1)
    ] = None,
    json: Json = False,
) -> None:
    """Search the best method, rank, learning rate and targets within a budget, by the validation alone.

    The same command goes on after Ctrl-C or a kill, and several of them may run at the same time.
    """
    keep_freed_memory()
    changes = {"steps": steps, "validate_every": validate_every}
    given = {name: value for name, value in changes.items() if value is not None}
    with progress(search.trials, "searching", quiet=json) as advance:
        options: dict[str, Any] = {
            "executor": executor,
            "facts": _facts(),
            "on_trial": lambda row, done: advance(done, f"{row.state}, accuracy {row.accuracy or 0:.3f}"),
        }
        if job == "fit":
            result = _fit(folder, backbone, data, columns, label_columns, holdout, search, settings, given, options)
        else:
            result = _finetune(folder, backbone, data, columns, label_columns, search, settings, given, options)
    if result is None:
        print(f"{folder}: other processes still run trials; the last one writes the result", file=sys.stderr)
        return
    _show(folder, result, json)


def _fit(
    folder: Path,
    backbone: str,
    data: Path,
    columns: TaskColumns,
    label_columns: tuple[str, ...] | None,
    holdout: int | None,
    search: SweepConfig,
    settings: Path | None,
    changes: dict[str, int],
    options: dict[str, Any],
) -> SweepResult | None:
    from metalora.learner import LearnerConfig, read_tasks, sweep_fit

    config = LearnerConfig() if settings is None else learner_settings(str(settings))["config"]
    pools = read_tasks(data, label_columns=label_columns, **vars(columns))
    config = dataclasses.replace(config, **changes)
    return sweep_fit(folder, backbone, pools, search, config=config, holdout=holdout, **options)


def _finetune(
    folder: Path,
    backbone: str,
    data: Path,
    columns: TaskColumns,
    label_columns: tuple[str, ...] | None,
    search: SweepConfig,
    settings: Path | None,
    changes: dict[str, int],
    options: dict[str, Any],
) -> SweepResult | None:
    from metalora.learner import FineTuneConfig, sweep_finetune

    if label_columns is not None and len(label_columns) != 1:
        raise ValueError(f"--label-columns has {len(label_columns)} names; a fine-tuning has one column of labels")
    known = {} if settings is None else finetuning_settings(str(settings))
    inputs, labels, groups = one_task(data, "sweep", None if label_columns is None else label_columns[0], columns)
    config = dataclasses.replace(known.get("config", FineTuneConfig()), **changes)
    return sweep_finetune(
        folder,
        backbone,
        inputs,
        labels,
        search,
        adapter=known.get("adapter"),
        config=config,
        groups=groups,
        **options,
    )


def _facts() -> dict[str, object]:
    from metalora.bench.store import commit, environment

    return {"metalora": commit(), **environment()}


def _show(folder: Path, result: SweepResult, json: bool) -> None:
    """Print the trials, or the reason why all of them failed, which ends the command with exit code 1."""
    if result.best is None:
        print(f"metalora: {folder}: {result.verdict}", file=sys.stderr)
        raise SystemExit(1)
    if json:
        return print_json(result.to_dict())
    columns = ("trial", "state", "method", "rank", "targets", "lr", "accuracy", "parameters", "seconds")
    rows = [{name: "" if row[name] is None else row[name] for name in columns} for row in _best_first(result)]
    show(None, False, f"{folder}: accuracy of the validation", columns, rows)
    print(result.verdict)
    print(f"settings: {folder / 'best.yaml'}; model: {folder / 'best'}; page: {folder / 'report.html'}")


def _best_first(result: SweepResult) -> list[dict[str, Any]]:
    rows = sorted(result.trials, key=lambda row: (row.state != "complete", -(row.accuracy or 0), row.number))
    return [row.table_row() for row in rows]
