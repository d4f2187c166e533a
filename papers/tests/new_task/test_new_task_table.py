"""The table of the time to a new task from made-up rows: runs, report, front, and the number of tasks that pay."""

import dataclasses
import json

import pytest

from metalora.bench.store import RowStore, make_row, run_key
from metalora.config import to_dict
from metalora_papers.new_task.config import IMAGES, TEXTS, THROUGHPUT, NewTaskTableConfig
from metalora_papers.new_task.figure import front
from metalora_papers.new_task.line_up import CHOOSING_SEEDS, DISCRIMINANT, FULL, LORA, METHODS, READOUT, SETFIT
from metalora_papers.new_task.summary import MethodSummary, tasks_until_it_pays
from metalora_papers.new_task.table import NewTaskComparison
from support.command import papers_command

NAMES = (DISCRIMINANT, READOUT, LORA)
TABLE = NewTaskTableConfig(methods=NAMES, seeds=(0, 1))
SECONDS = {DISCRIMINANT: 0.25, READOUT: 0.5, LORA: 10.0}
ACCURACY = {DISCRIMINANT: 0.5, READOUT: 0.6, LORA: 0.55}


def made_up(run, accuracy=None):
    """The row of a run as it would have been written: the second task is 0.1 better than the first."""
    if run.suite == THROUGHPUT:
        tasks = {"one": {"tasks_per_second": 2.0}, "many": {"tasks_per_second": 0.5}}
        results = {"tasks": tasks, "ratio": {"median": 4.0, "low": 3.5, "high": 4.5}, "mean": 4.0, "peft_runs": 4}
    else:
        seconds, value = SECONDS[run.method], ACCURACY[run.method] if accuracy is None else accuracy
        tasks = {
            name: {
                "accuracy": value + 0.1 * number,
                "seconds": seconds,
                "cpu_seconds": 2 * seconds,
                "joules": None,
                "seconds_of_100": 0.125,
                "bytes": 3000,
            }
            for number, name in enumerate(run.tasks)
        }
        training = {"seconds": 100.0, "cpu_seconds": 100.0, "joules": None} if run.learner else None
        results = {"tasks": tasks, "mean": value + 0.05, "training": training}
    config = to_dict(run)
    return make_row(key=run_key(config), suite=run.suite, config=config, seed=run.seed, results=results, seconds=1.0)


def comparison(**settings):
    return NewTaskComparison("new-task", dataclasses.replace(TABLE, **settings))


def table_rows(table):
    rates = {(suite, LORA): 1e-3 for suite in (IMAGES, TEXTS)}
    return [made_up(run) for run in table.runs(rates)]


def test_the_report():
    images, paying, *_, throughput = comparison().report(table_rows(comparison())).tables
    assert images.cells[1][:1] + images.cells[1][2:] == ("generated readout", "0.50", "1.00", "not measured", "0.12",
                                                         "3", "–", "–")  # fmt: skip
    assert images.cells[1][1].startswith("65.0 [") and images.cells[2][-2:] == ("0.001", "20")
    # 100 s of training and 0.5 s a task: never before LDA with 0.25 s, before LoRA with 10 s from the eleventh task on.
    assert paying.columns[2:] == (DISCRIMINANT, LORA) and paying.cells == (("generated readout", "100", "never", "11"),)
    assert throughput.cells == (("one", "2.000"), ("many", "0.500")) and "4.00 [3.50, 4.50]" in throughput.note
    json.dumps(comparison().report(table_rows(comparison())).to_json(), allow_nan=False)


def summary(name, seconds, accuracy, training=0.0):
    return MethodSummary(
        name, accuracy, accuracy, accuracy, seconds, seconds, 0.1, 1000, None, training, 0.0, 0, seeds=1, tasks=1
    )


def test_the_front_is_what_nothing_beats():
    methods = [summary("slow best", 9, 0.9), summary("fast", 1, 0.5), summary("beaten", 5, 0.5), summary("b", 2, 0.7)]
    assert [method.name for method in front(methods)] == ["fast", "b", "slow best"]


@pytest.mark.parametrize("training, ours, theirs", [(100.0, 0.5, 10.0), (100.0, 1.0, 2.0), (3.0, 0.5, 10.0)])
def test_the_number_of_tasks_is_the_first_that_saves_time(training, ours, theirs):
    first = next(n for n in range(1, 1000) if training + n * ours < n * theirs)
    learner, peer = summary("learner", ours, 0.5, training), summary("peer", theirs, 0.5)
    assert tasks_until_it_pays(learner, peer) == first
    assert tasks_until_it_pays(summary("learner", theirs, 0.5, training), peer) is None


def test_the_runs_of_the_table():
    table = comparison(methods=(), seeds=(3, 4))
    runs = table.runs({(TEXTS, FULL): 7e-5, (TEXTS, FULL, "steps"): 9.0})
    assert [run.seed for run in runs[:-1]] == [3] * 23 + [4] * 23 and runs[-1].suite == THROUGHPUT
    assert [run.method for run in runs[:11]] == [method for method in METHODS if method != SETFIT]
    assert {(run.lr, run.steps) for run in runs if (run.suite, run.method) == (TEXTS, FULL)} == {(7e-5, 9)}
    assert len({run_key(to_dict(run)) for run in runs}) == len(runs)
    with pytest.raises(ValueError, match="generated readou"):
        comparison(methods=("generated readou",)).runs({})


def test_rates_and_steps_are_chosen_on_tasks_of_the_validation_split():
    table = comparison(methods=(LORA,), suites=(IMAGES,))
    choosing = table.choosing_runs()
    grid = [(rate, steps) for steps in TABLE.image_fit_steps for rate in TABLE.lora_rates]
    assert [(run.split, run.lr, run.steps) for run in choosing] == [("val", *schedule) for schedule in grid] * 2
    assert not set(choosing[0].tasks) & set(table.runs({})[0].tasks)
    best, of_one_seed = grid[1], grid[2]  # the second is the best one with the first seed alone
    first, second = dict.fromkeys(grid, 0.5) | {best: 0.6, of_one_seed: 0.7}, dict.fromkeys(grid, 0.5) | {best: 0.9}
    accuracies = dict(zip(CHOOSING_SEEDS, (first, second), strict=True))
    rows = [made_up(run, accuracy=accuracies[run.seed][run.lr, run.steps]) for run in choosing]
    rates = table.chosen_rates(rows)
    assert rates == {(IMAGES, LORA): best[0], (IMAGES, LORA, "steps"): best[1]}
    test_rows = [made_up(run) for run in table.runs(rates)]
    of_other_steps = [made_up(dataclasses.replace(run, steps=max(TABLE.image_fit_steps))) for run in table.runs(rates)]
    assert table.rows_of(rows + of_other_steps + test_rows) == test_rows
    of_other_grid = [made_up(dataclasses.replace(choosing[0], steps=12), accuracy=0.99)]
    assert table.rows_of(of_other_grid + rows + test_rows) == test_rows


def test_the_command_reports_from_rows_alone(tmp_path):
    pytest.importorskip("matplotlib")
    store = RowStore(tmp_path / "rows.jsonl")
    for row in table_rows(comparison()):
        store.append(row)
    arguments = ("table", "new-task", "--rows", store.path, "--out", tmp_path / "out", "--html", tmp_path / "page.html")
    code, out, _ = papers_command(*arguments, "--methods", *NAMES, "--json")
    assert code == 0 and len(json.loads(out)["rows"]) == 13
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["new-task.md", "new-task.png"]
    assert "generated readout" in (tmp_path / "page.html").read_text()
    assert f"page: {tmp_path / 'page.html'}" in papers_command(*arguments, "--methods", *NAMES)[1].replace("\n", "")
