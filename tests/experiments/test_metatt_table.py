"""MetaTT's tables on text: the runs they take, and their reports from made-up rows."""

import json
from dataclasses import replace

import pytest

from metalora.config import to_dict
from metalora.experiments.config import TextTableConfig
from metalora.experiments.metatt_table import choosing_runs, chosen_rates, report, runs
from metalora.experiments.pool import run_all
from metalora.experiments.rows import RowStore, make_row, run_key
from metalora.experiments.tables import run_text_table

SINGLE = TextTableConfig(seeds=(0, 1))
JOINT = replace(SINGLE, joint=True)
SCORES = {"lora": 0.8, "metatt-4d": 0.78, "metatt-5d": 0.7, "metatt-4+1d": 0.79, "head alone": 0.5}


def made_up(run, seed_step=0.01):
    score = SCORES.get(run.method, 0.9) + seed_step * (run.seed % 10) * (1 + list(SCORES).index(run.method) / 10)
    accuracy = {task: score - 0.1 * k for k, task in enumerate(run.tasks)}
    results = {"accuracy": accuracy, "matthews": {}, "mean": sum(accuracy.values()) / len(accuracy), "num_params": 10}
    config = to_dict(run)
    return make_row(key=run_key(config), suite="news", config=config, seed=run.seed, results=results, seconds=1.0)


def test_one_run_a_task_or_one_for_all():
    single, joint = runs(SINGLE, {}), runs(JOINT, {})
    assert len(single) == 2 * 4 * 4 and {len(run.tasks) for run in single} == {1}
    assert len(joint) == 2 * 5 and {run.tasks for run in joint} == {SINGLE.tasks}
    by_name = {run.method: run.adapter for run in joint}
    assert by_name["head alone"] is None and by_name["lora"].alpha == 16 and by_name["metatt-4d"].alpha == 4
    assert by_name["metatt-4+1d"].tasks == 4 and by_name["metatt-4+1d"].init == "ze-no-id-no-no"
    assert by_name["metatt-5d"].init == "ze-no-no-id-no" and by_name["metatt-4d"].tasks == 1
    assert {run.adapter.seed for run in single if run.adapter and run.seed == 1} == {1}


def test_every_weight_learns_at_a_hundredth_of_the_rate():
    run = next(run for run in runs(replace(SINGLE, full=True), {}) if run.method == "every weight")
    assert run.full and run.adapter is None and run.train.lr == pytest.approx(1e-5)


def test_rates_are_chosen_by_method_and_task():
    table = replace(SINGLE, lr_grid=(1e-3, 4e-3), full=True)
    rows = []
    for run in choosing_runs(table):
        assert run.split == "val" and run.seed == 1000
        better = (run.train.lr in (4e-3, 4e-5)) == (run.tasks[0] != "next")
        row = made_up(replace(run, method="lora"))
        row["config"]["method"], row["results"]["mean"] = run.method, 0.6 + 0.1 * better
        rows.append(row)
    rates = chosen_rates(rows)
    assert rates["lora", "topic"] == 4e-3 and rates["lora", "next"] == 1e-3
    assert rates["every weight", "topic"] == pytest.approx(4e-3)
    chosen = {(run.method, run.tasks[0]): run.train.lr for run in runs(table, rates)}
    assert chosen["lora", "next"] == 1e-3 and chosen["every weight", "topic"] == pytest.approx(4e-5)


@pytest.mark.parametrize("table", (SINGLE, JOINT), ids=("single", "joint"))
def test_a_report(table):
    rows = [made_up(run) for run in runs(table, {})]
    first, last = report(rows, table)
    assert first.columns == ("method", "seeds", *table.tasks, "mean", "parameters")
    line = dict(zip(first.columns, next(c for c in first.cells if c[0] == "lora"), strict=True))
    mean = 80.5 if not table.joint else 65.5
    assert line["mean"].startswith(f"{mean}") and line["seeds"] == "2"
    assert {cells[1] for cells in last.cells} == {name for name in SCORES if name != "lora"} - (
        set() if table.joint else {"metatt-4+1d"}
    )


def test_a_method_that_lacks_a_task_is_left_out():
    rows = [made_up(run) for run in runs(SINGLE, {}) if (run.method, run.tasks[0]) != ("metatt-5d", "next")]
    assert "metatt-5d" not in {cells[0] for cells in report(rows, SINGLE)[0].cells}
    with pytest.raises(ValueError, match="no method has a row on each of topic"):
        report(rows[:1], SINGLE)


def test_the_command_reports_from_rows_alone(tmp_path, capsys):
    store = RowStore(tmp_path / "rows.jsonl")
    for run in runs(SINGLE, {}):
        store.append(made_up(run))
    run_text_table(SINGLE, tmp_path, workers=1, as_json=True, rows_file=store.path)
    found = json.loads(capsys.readouterr().out)
    assert len(found["tables"]) == 2 and (tmp_path / "metatt-single.md").exists()
    assert run_all(runs(SINGLE, {}), tmp_path) == store.rows()  # nothing is run twice


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(methods=("metatt-4",)), "unknown row 'metatt-4'; did you mean 'metatt-4d'"),
        (dict(tasks=("topics",)), "unknown text task 'topics'; did you mean 'topic'"),
    ],
)
def test_unknown_names(changes, message):
    with pytest.raises(ValueError, match=message):
        runs(replace(SINGLE, **changes), {})
