"""The verbs for own tasks: fit, adapt, predict; heavy imports are inside the verb."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from metalora._util.allocator import keep_freed_memory
from metalora._util.files import check_folder, write_atomically
from metalora._util.number_range import Range
from metalora._util.overwriting import check_output
from metalora._util.report_page import check_page
from metalora._util.suggest import check_choice
from metalora.cli.render import Json, Overwrite, is_first_process, print_json, progress, show, status
from metalora.cli.settings_file import SettingsFile, finetuning_settings, learner_settings, takes_settings
from metalora.config import AdapterConfig
from metalora.learner.config import LearnerConfig
from metalora.learner.finetuning_config import DESCRIPTION_FILE as FINETUNED
from metalora.learner.finetuning_config import FineTuneConfig
from metalora.methods.registry import METHODS

if TYPE_CHECKING:
    from torch import nn

    from metalora.learner import AdaptedTask, FineTuned, MetaLearner, Report, TaskPool
    from metalora.learner.evaluation import EpisodeFeatures
    from metalora.learner.splits import Split

BACKBONES = "timm:NAME, torchvision:NAME, hf:FOLDER_OR_ID, st:FOLDER_OR_ID, minilm or efficientnet-lite0"
LearnerFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LEARNER", help="folder of the learner")]
AllowDownload = Annotated[
    bool, tyro.conf.arg(help="download the network that the folder names, unless it is bundled or a folder or file")
]
LabelColumns = Annotated[tuple[str, ...] | None, tyro.conf.arg(help="columns of labels; all others if not given")]
TaskFolder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TASK", help="folder of the task")]
ReportFile = Annotated[
    Path | None,
    tyro.conf.arg(help="HTML file of all tables, training curves, calibration, confusions and nearest neighbours"),
]
TABLES = "a table (.csv, .tsv, .jsonl, .parquet) or a folder of pictures"


@dataclass(frozen=True)
class InputColumns:
    """Where a table has its inputs."""

    images: Path | None = None
    """folder that image paths are relative to; the table's if not given"""
    image_column: str | None = None
    """column of image paths; found by its values if not given"""
    text_column: str | None = None
    """column of texts"""


@dataclass(frozen=True)
class TaskColumns(InputColumns):
    """Where a table has its inputs and their groups."""

    group_column: str | None = None
    """inputs with the same value are variants of one thing: a classifier that has learned from one is not judged by
    another"""


InputFlags = Annotated[InputColumns, tyro.conf.arg(name="")]
TaskFlags = Annotated[TaskColumns, tyro.conf.arg(name="")]


@takes_settings(learner_settings)
def fit(
    learner: LearnerFolder,
    backbone: Annotated[str, tyro.conf.arg(help=BACKBONES)],
    data: Annotated[
        Path,
        tyro.conf.arg(help=f"{TABLES}: in class folders, or without; without labels all notions are procedural"),
    ],
    columns: TaskFlags = TaskColumns(),  # noqa: B008 (frozen)
    label_columns: LabelColumns = None,
    holdout: Annotated[
        int | None,
        tyro.conf.arg(help="how many tasks are kept for the report; a fifth of five or more"),
        Range(least=0),
    ] = None,
    report_episodes: Annotated[int, tyro.conf.arg(help="support sets of each task in the report"), Range(least=1)] = 8,
    no_adapter: Annotated[bool, tyro.conf.arg(help="train nothing: the frozen network and a readout")] = False,
    config: Annotated[LearnerConfig, tyro.conf.AvoidSubcommands, tyro.conf.arg(name="")] = LearnerConfig(),  # noqa: B008
    settings: SettingsFile = None,  # is read before the other flags, whose defaults it changes
    report: ReportFile = None,
    json: Json = False,
) -> None:
    """Meta-train an adapter on your own tasks, compare it with its peers, and write the learner as a folder.

    Ctrl-C keeps a checkpoint next to the folder; the same command continues from it. With `accelerate launch -m
    metalora.cli.main` several processes train together.
    """
    from metalora._util.process_errors import errors_in_all_processes
    from metalora._util.processes import join_processes
    from metalora.learner import MetaLearner, read_tasks
    from metalora.learner.evaluation import EpisodeFeatures
    from metalora.learner.report import make_report
    from metalora.learner.saving import FILES_OF_LEARNER
    from metalora.learner.splits import split_pools
    from metalora.learner.validation import best_state_path

    keep_freed_memory()
    join_processes()
    with errors_in_all_processes():
        check_folder(learner, FILES_OF_LEARNER)
        if report is not None:
            check_page(report)
        if no_adapter:
            config = dataclasses.replace(config, adapter=None)
        pools = read_tasks(data, label_columns=label_columns, **vars(columns))
        with status("loading the backbone", quiet=json):
            trained = MetaLearner(backbone, config)
        if no_adapter:
            _read_all(trained, pools)
    checkpoint = learner.with_name(f"{learner.name}.training.pt")
    with progress(config.steps, "meta-training", quiet=json) as advance:
        trained.fit_pools(
            pools,
            holdout=holdout,
            checkpoint=checkpoint,
            on_step=lambda step, loss: advance(step + 1, f"loss {loss:.3f}"),
            report=False,
        )
    with status("comparing with the peers", quiet=json):
        split = split_pools(pools, holdout, config.holdout_items, config.seed)
        features = EpisodeFeatures(trained, split.kept)
        trained.report_ = make_report(trained, split, report_episodes, features)
    trained.save_pretrained(learner)
    if report is not None:
        title = f"{learner.name}, trained on {data.name}"
        _write_report(report, title, split, trained.report_, features, report_episodes)
    checkpoint.unlink(missing_ok=True)
    best_state_path(checkpoint).unlink(missing_ok=True)
    _show_report(trained.report_, json, f"{learner}: accuracy on inputs that were not trained on", report)


def _read_all(learner: MetaLearner, pools: Sequence[TaskPool]) -> None:
    """Prepare all inputs once, since without a training nothing else would report one that cannot be read."""
    from metalora.learner.data import PreparedInputs

    for pool in pools:
        learner.backbone.check_inputs(pool.inputs)
        PreparedInputs(pool, learner.backbone.preprocessor)


def _show_report(report: Report, json: bool, title: str, page: Path | None) -> None:
    if json:
        return print_json(report.to_dict())
    means = {"trained": report.means(False), "held out": report.means(True)}
    if not any(means.values()):  # it is not known what was trained on
        means = {"accuracy": report.means()}
    rows = [
        {"method": method} | {name: _percent(values.get(method)) for name, values in means.items()}
        for method in report.means()
    ]
    show(None, False, title, ("method", *means), rows)
    if is_first_process():
        print(report.verdict, *([] if page is None else [f"page: {page}"]), sep="\n")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


@takes_settings(finetuning_settings)
def finetune(
    backbone: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BACKBONE", help=BACKBONES)],
    data: Annotated[Path, tyro.conf.arg(help=f"labelled examples of one task: {TABLES} in class folders")],
    out: Annotated[Path, tyro.conf.arg(help="folder of the fine-tuned network")],
    label_column: Annotated[str | None, tyro.conf.arg(help="column of the labels, if there are several")] = None,
    columns: TaskFlags = TaskColumns(),  # noqa: B008 (frozen)
    adapter: Annotated[AdapterConfig, tyro.conf.arg(name="")] = AdapterConfig(),  # noqa: B008 (frozen)
    config: Annotated[FineTuneConfig, tyro.conf.arg(name="")] = FineTuneConfig(),  # noqa: B008 (frozen)
    settings: SettingsFile = None,  # is read before the other flags, whose defaults it changes
    json: Json = False,
) -> None:
    """Fine-tune a network to one task that has many labelled examples.

    --method is one of `metalora methods`; or full, which trains the whole network, or head, which trains a head alone.
    """
    from metalora._util.process_errors import errors_in_all_processes
    from metalora._util.processes import join_processes
    from metalora.learner import finetune as tune
    from metalora.learner.finetuning_files import FILES_OF_FINE_TUNED

    keep_freed_memory()
    join_processes()
    with errors_in_all_processes():
        check_folder(out, FILES_OF_FINE_TUNED)
        check_choice("method", adapter.method, (*METHODS, "full", "head"))
        inputs, labels, groups = one_task(data, "finetune", label_column, columns)
    with progress(config.steps, f"fine-tuning {adapter.method}", quiet=json) as advance:
        tuned = tune(
            backbone,
            inputs,
            labels,
            adapter,
            config,
            seed=adapter.seed,
            groups=groups,
            on_step=lambda step, loss: advance(step + 1, f"loss {loss:.3f}"),
        )
    tuned.save_pretrained(out)
    scores = tuned.scores_
    size = sum(file.stat().st_size for file in out.iterdir())
    row = {"folder": str(out), "method": adapter.method, **scores.to_dict(), "bytes": size}
    show(row, json, f"{backbone}, {scores.inputs} inputs that were not trained on", list(row), [row])


def adapt(
    learner: LearnerFolder,
    support: Annotated[Path, tyro.conf.arg(help=f"labelled examples: {TABLES} in class folders")],
    out: Annotated[Path, tyro.conf.arg(help="folder of the task")],
    label_column: Annotated[str | None, tyro.conf.arg(help="column of the labels, if there are several")] = None,
    columns: TaskFlags = TaskColumns(),  # noqa: B008 (frozen)
    max_bytes: Annotated[
        int | None, tyro.conf.arg(help="largest size of the task's numbers, in bytes"), Range(least=1)
    ] = None,
    allow_download: AllowDownload = False,
    json: Json = False,
) -> None:
    """Adapt a learner to a task: one forward pass of its labelled examples."""
    from metalora.learner import MetaLearner
    from metalora.learner.saving import TASK_FILE

    check_folder(out, [TASK_FILE])
    inputs, labels, groups = one_task(support, "adapt", label_column, columns)
    with status("adapting", quiet=json):
        loaded = MetaLearner.from_pretrained(learner, allow_download=allow_download)
        task = loaded.adapt(inputs, labels, groups=groups)
        task.save_pretrained(out, max_bytes=max_bytes)
    size = sum(file.stat().st_size for file in out.iterdir())
    row = {"task": str(out), "examples": len(inputs), "classes": list(map(str, task.labels.classes)), "bytes": size}
    show(row, json, f"task of {learner}", ("task", "examples", "classes", "bytes"), [row])


def one_task(
    source: Path, verb: str, label_column: str | None, columns: TaskColumns
) -> tuple[list[Any], list[Any], list[int] | None]:
    """Read the labelled examples of one task; those without a label are left out.

    Args:
        source: A table or a folder.
        verb: Name of the command, for messages.
        label_column: Column of the labels; None: the only one.
        columns: Where a table has its inputs.

    Returns:
        Inputs, labels, and groups or None.

    Raises:
        ValueError: The source has no labels, or several columns of them.
    """
    from metalora.learner import read_tasks

    pools = read_tasks(source, label_columns=None if label_column is None else (label_column,), **vars(columns))
    if len(pools) != 1 or len(pools[0].columns) != 1:
        names = [name for pool in pools for name in pool.columns]
        ignored = [f"{name}: {reason}" for pool in pools for name, reason in pool.ignored.items()]
        if not names and ignored:
            raise ValueError(f"{source}: no column can be classes ({'; '.join(ignored)})")
        if not names:
            raise ValueError(f"{source}: has no labels; {verb} needs a column of labels or class folders")
        raise ValueError(f"{source}: has several columns of labels ({', '.join(names)}); name one: --label-column")
    (column,) = pools[0].columns.values()
    labelled = [number for number, code in enumerate(column.codes.tolist()) if code >= 0]
    inputs = [pools[0].inputs[number] for number in labelled]
    labels = [column.classes[int(column.codes[number])] for number in labelled]
    groups = pools[0].groups
    return inputs, labels, None if groups is None else [int(groups[number]) for number in labelled]


def predict(
    task: TaskFolder,
    inputs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="INPUTS", help=f"{TABLES}, or one picture")],
    out: Annotated[Path | None, tyro.conf.arg(help="CSV file; printed if not given")] = None,
    learner: Annotated[Path | None, tyro.conf.arg(help="folder of the learner, if it has moved")] = None,
    columns: InputFlags = InputColumns(),  # noqa: B008 (frozen)
    allow_download: AllowDownload = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Predict: for every input its label, the probability of the label, and how unlike the support set it is."""
    if out is not None:
        check_output(out, overwrite, [task] if inputs.is_dir() else [task, inputs])
    load = _loader(task, learner, allow_download)  # a folder that holds no task is reported before inputs are read
    pools = read_inputs(inputs, columns)
    items = [item for pool in pools for item in pool.inputs]
    with status(f"predicting {len(items)} inputs", quiet=json):
        rows = prediction_rows(load(), items)
    if out is not None:
        write_atomically(out, _as_csv(rows).encode())
        row = {"predictions": str(out), "inputs": len(rows)}
        return show(row, json, f"predictions of {task}", ("predictions", "inputs"), [row])
    if json:
        return print_json(rows)
    print(_as_csv(rows), end="")


def _loader(task: Path, learner: Path | None, allow_download: bool) -> Callable[[], AdaptedTask | FineTuned]:
    """Return what loads a task, or a fine-tuned network.

    Raises:
        ValueError: The folder holds neither, or a fine-tuned network is given a learner.
    """
    from metalora.learner import AdaptedTask, FineTuned, MetaLearner
    from metalora.learner.finetuning_files import read_description
    from metalora.learner.saving import read_task

    if (task / FINETUNED).is_file():
        if learner is not None:
            raise ValueError(f"{task}: a fine-tuned network belongs to no learner; leave out --learner")
        read_description(task)
        return lambda: FineTuned.from_pretrained(task, allow_download=allow_download)
    read_task(task)

    def load() -> AdaptedTask:
        loaded = None if learner is None else MetaLearner.from_pretrained(learner, allow_download=allow_download)
        return AdaptedTask.from_pretrained(task, loaded, allow_download=allow_download)

    return load


def read_inputs(source: Path, columns: InputColumns) -> Sequence[TaskPool]:
    """Read inputs without labels: those of a table, all pictures of a folder, or one picture.

    Raises:
        ValueError: The source cannot be read.
    """
    from metalora.learner import TaskPool, read_tasks
    from metalora.learner.data.tables import TABLE_SUFFIXES

    if source.is_file() and source.suffix.lower() not in TABLE_SUFFIXES:
        return [TaskPool([source], name=str(source))]
    if source.is_dir():
        return read_tasks(source)
    return read_tasks(source, label_columns=(), **vars(columns))


def prediction_rows(task: AdaptedTask | FineTuned, items: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row for each input: the input, its label, the probability of the label, and its novelty."""
    outputs, novelty = task.predict_with_novelty(items)
    labels = task.labels.decode(outputs)
    rows = []
    for number, item in enumerate(items):
        label = labels[number]
        row: dict[str, Any] = {"input": str(item)}
        row["label"] = " ".join(sorted(map(str, label))) if isinstance(label, set) else _plain(label)
        if task.kind == "classes":
            row["probability"] = round(float(task.labels.probabilities(outputs[number : number + 1]).max()), 4)
        row["novelty"] = round(float(novelty[number]), 4)
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _as_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["input", "label"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def evaluate(
    learner: LearnerFolder,
    data: Annotated[Path, tyro.conf.arg(help=f"{TABLES} in class folders: tasks with labels")],
    columns: TaskFlags = TaskColumns(),  # noqa: B008 (frozen)
    label_columns: LabelColumns = None,
    episodes: Annotated[int, tyro.conf.arg(help="support sets of each task"), Range(least=1)] = 12,
    report: ReportFile = None,
    allow_download: AllowDownload = False,
    json: Json = False,
) -> None:
    """Compare a learner with its peers on further inputs: the same episodes for every method.

    The inputs should not be those of the training, of which a learner has no record.
    """
    from metalora.learner import MetaLearner, read_tasks
    from metalora.learner.evaluation import EpisodeFeatures
    from metalora.learner.report import evaluate_pools, whole_split

    keep_freed_memory()
    if report is not None:
        check_page(report)
    pools = read_tasks(data, label_columns=label_columns, **vars(columns))
    with status("running the episodes", quiet=json):
        loaded = MetaLearner.from_pretrained(learner, allow_download=allow_download)
        features = EpisodeFeatures(loaded, pools)
        scores = evaluate_pools(loaded, pools, episodes, features)
        if report is not None:
            _write_report(report, f"{learner.name} on {data.name}", whole_split(pools), scores, features, episodes)
    _show_report(scores, json, f"{learner} on {data}: accuracy", report)


def _write_report(
    path: Path, title: str, split: Split, report: Report, features: EpisodeFeatures, episodes: int
) -> None:
    """Write a report as a page, with the versions and the commit that it was made with."""
    from metalora.bench.store import commit, environment
    from metalora.learner.html_report import write_html

    if not is_first_process():
        return
    facts = {"metalora": commit(), **environment()}
    write_html(features.learner, split, report, path, title=title, episodes=episodes, features=features, facts=facts)


def recommend(
    backbone: Annotated[str, tyro.conf.arg(help=f"{BACKBONES}; no weights are downloaded")],
    tasks: Annotated[int, tyro.conf.arg(help="number of tasks"), Range(least=1)],
    examples: Annotated[int, tyro.conf.arg(help="labelled examples of a task"), Range(least=4)],
    budget: Annotated[str | None, tyro.conf.arg(help="largest size of a task, such as 20kB or 1MB")] = None,
    latency: Annotated[
        float | None, tyro.conf.arg(help="seconds after which a new task must be ready"), Range(above=0)
    ] = None,
    json: Json = False,
) -> None:
    """Recommend a method, its rank and a readout, with the reason: from sizes, and from what was measured."""
    from metalora.learner.recommendation import Need, parse_bytes
    from metalora.learner.recommendation import recommend as choose

    need = Need(tasks, examples, None if budget is None else parse_bytes(budget), latency)
    model, width = _architecture(backbone)
    chosen = choose(model, backbone, need, feature_width=width)
    if json:
        return print_json(chosen.to_dict())
    row = {"strategy": chosen.strategy, "method": chosen.method or "none", "rank": chosen.rank or ""}
    row |= {"readout": chosen.readout or "a linear head"}
    row |= {"bytes of a task": "" if chosen.task_bytes is None else f"{chosen.task_bytes:,}"}
    row |= {"bytes they share": f"{chosen.shared_bytes:,}", "more multiply-adds": f"{chosen.overhead:.2%}"}
    show(None, False, f"{tasks} tasks with {examples} examples on {backbone}", list(row), [row])
    print("\n".join((*chosen.reasons, "", chosen.command)))


def _architecture(backbone: str) -> tuple[nn.Module, int | None]:
    """Return the network without its weights if they would be downloaded, and the number of its statistics."""
    from metalora.adapters.conditioning.features import example_input
    from metalora.learner.features import StageFeatures
    from metalora.zoo import load_model, sentence_encoder

    library, _, rest = backbone.partition(":")
    if backbone == "minilm" or library == "st":
        model, _ = sentence_encoder(rest or backbone)
    else:
        model = load_model(backbone, weights=False)
    if any(parameter.is_meta for parameter in model.parameters()):
        return model, None
    features = StageFeatures(model, None)
    try:
        return model, features.frozen(example_input(model)).shape[1]
    finally:
        features.remove()
