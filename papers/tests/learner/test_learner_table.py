"""The tables of learners, from made-up rows: one row a method and a peer, differences on the same episodes."""

import dataclasses
import json
from html import escape

import pytest

from metalora.bench.store import RowStore, make_row, run_key
from metalora.config import to_dict
from metalora_papers.cli import TABLE_SETTINGS
from metalora_papers.learner.differences import paired_difference
from metalora_papers.learner.line_up import FITTED, ORIGINAL, TRAINED_WITHOUT_VENDORS, methods_of
from metalora_papers.learner.scores import FROZEN, method_rows
from metalora_papers.learner.table import LearnerComparison
from support.command import papers_command

NAME = "learner-attributes"
TRAINED, HELD_OUT = ("class", "hue"), ("noise", "class (unseen)")
PEERS = {"k-NN, last layer": 0.3, "LDA, all stages": 0.5}
LORA_FITTED = "LoRA and head, all stages, fitted"


def comparison(name=NAME, **settings):
    return LearnerComparison(name, dataclasses.replace(TABLE_SETTINGS[name], **settings))


def scores(value, episodes):
    """Accuracies of a method: episodes differ by 0.01, never-trained notions lie 0.1 lower, unseen classes 0.2."""
    lower = {"class": 0.0, "hue": 0.0, "noise": 0.1, "class (unseen)": 0.2}
    by_task = {task: [value - lower[task] + 0.01 * k for k in range(episodes)] for task in (*TRAINED, *HELD_OUT)}
    return {"trained_mean": value, "episodes": by_task}


def made_up(run, value):
    """The row of a run as it would have been written."""
    count = 2 if run.method == FITTED else 3
    results = {
        "readout": scores(value, count),
        "trained": list(TRAINED),
        "calibration_error": {"trained": 0.04},
        "num_params": 0 if run.adapter is None else 1234,
        "seconds": {"readout": 0.02, "readout alone": 0.001},
        "loss": None,
    }
    if run.method == ORIGINAL:
        results |= {name: scores(peer, count) for name, peer in PEERS.items()}
    if run.method == FITTED:
        results |= {LORA_FITTED: scores(0.65, count), "chosen": {LORA_FITTED: {"steps": 40, "lr": 0.001}}}
        results["seconds"] |= {LORA_FITTED: 6.0, "LoRA and readout": 0.05}
    config = to_dict(run)
    return make_row(key=run_key(config), suite=run.suite, config=config, seed=run.seed, results=results, seconds=1.0)


def table_rows(table, seeds=(0, 1)):
    values = {ORIGINAL: 0.6, FITTED: 0.6, "lora": 0.7, "metalora-cp": 0.69}
    runs = [run for run in table.runs({}) if run.method in values and run.seed in seeds]
    return [made_up(run, values[run.method] + 0.02 * run.seed) for run in runs]


def test_a_row_for_every_method_and_peer():
    rows = method_rows(table_rows(comparison()))
    names = list(dict.fromkeys(row["config"]["method"] for row in rows))
    assert names == [*PEERS, FROZEN, LORA_FITTED, "lora", "metalora-cp"]
    lora = next(row["results"] for row in rows if row["config"]["method"] == "lora")
    assert lora["trained_mean"] == pytest.approx(0.71) and lora["held_out_mean"] == pytest.approx(0.61)
    assert lora["unseen_class"] == pytest.approx(0.51)  # not a part of the mean of the never-trained notions
    assert lora["num_params"] == 1234 and lora["milliseconds"] == pytest.approx(20)


def test_the_report():
    report = comparison().report(table_rows(comparison()))
    first, *differences, seconds = report.tables
    assert first.columns == (
        "method", "seeds", "class", "hue", "noise", "trained", "never trained", "unseen classes", "parameters",
        "calibration error, trained", "ms to a new task",
    )  # fmt: skip
    cells = {line[0]: dict(zip(first.columns, line, strict=True)) for line in first.cells}
    assert cells["lora"]["trained"].startswith("72.0 ±") and cells["LDA, all stages"]["parameters"] == "–"
    assert [table.title.split(" to ")[1] for table in differences] == [
        "the best peer without training, points",
        "LDA's own prediction, points",
        "the frozen network under the same readout, points",
        "the best peer fitted on the support set, points",
        "the static LoRA, points",
    ]
    assert seconds.cells == (("LoRA and readout", "0.050", "1.0"), ("readout", "0.020", "0.4"),
                             ("readout alone", "0.001", "0.0"), (LORA_FITTED, "6.000", "120.0"))  # fmt: skip
    to_lora = [d for d in report.differences if (d.treatment, d.reference) == ("metalora-cp", "lora")]
    assert [d.metric for d in to_lora] == ["trained_mean", "held_out_mean", "unseen_class"]
    assert all(d.difference == pytest.approx(-0.01) for d in to_lora)
    json.dumps(report.to_json(), allow_nan=False)


def test_a_difference_is_paired_by_seed_and_episode():
    """The values of the episodes differ by 0.01 and those of the seeds by 0.02, the differences do not at all."""
    rows = method_rows(table_rows(comparison()))
    found = paired_difference(rows, "trained_mean", "lora", list(PEERS))
    # 0.70 - 0.50 for seed 0, 0.72 - 0.50 for seed 1: the peers of this test do not depend on the seed.
    assert (found.reference, found.seeds, found.episodes) == ("LDA, all stages", 2, 6)
    assert found.difference == pytest.approx(0.21) and 0.199 < found.low <= found.high < 0.221
    paired = paired_difference(rows, "trained_mean", "metalora-cp", ["lora"])
    assert paired.low == paired.high == pytest.approx(paired.difference) == pytest.approx(-0.01)
    fewer = paired_difference(rows, "trained_mean", "lora", [LORA_FITTED])
    assert fewer.episodes == 4 and fewer.difference == pytest.approx(0.06)  # on the first two episodes of a seed
    assert paired_difference(rows, "trained_mean", "lora", ["lora", "SetFit"]) is None


def test_one_seed_and_one_method():
    table = comparison(methods=("lora",))
    report = table.report(table.rows_of(table_rows(table, seeds=(0,))))
    assert len(report.tables) == 1 and not report.differences


def test_rows_of_other_settings_are_left_out():
    own_rows = table_rows(comparison())
    rows = own_rows + table_rows(comparison(steps=7))
    assert comparison().rows_of(rows) == own_rows
    original = [row for row in own_rows if row["config"]["method"] == ORIGINAL]
    assert comparison(methods=(ORIGINAL,)).rows_of(rows) == original
    with pytest.raises(ValueError, match="no test row has these settings"):
        comparison(trained=("frame",)).rows_of(rows)


def test_the_rate_is_chosen_on_validation():
    table = comparison(lr_grid=(0.1, 0.2), methods=("lora", ORIGINAL))
    choosing = table.choosing_runs()
    assert [(run.method, run.split, run.train.lr) for run in choosing] == [("lora", "val", 0.1), ("lora", "val", 0.2)]
    rows = [made_up(run, run.train.lr) for run in choosing]
    rates = table.chosen_rates(rows)
    assert rates == {("lora",): 0.2}
    assert {run.train.lr for run in table.runs(rates) if run.method == "lora"} == {0.2}


def test_the_runs_of_a_table():
    runs = comparison(seeds=(3, 4)).runs({})
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len({run_key(to_dict(run)) for run in runs}) == len(runs)
    by_method = {run.method: run for run in runs}
    assert by_method["lora"].adapter.seed == 4 and by_method["lora, no labels"].procedural == 1
    assert by_method[FITTED].peers and by_method[FITTED].peer_adapter.rank == 8 and by_method[FITTED].adapter is None
    assert by_method["metalora-cp after static steps"].static_steps == 250
    assert by_method["metalora-cp"].adapter.condition.scope == "support"
    assert "metatt-4d" not in by_method and "metatt-4d" in methods_of(NAME, comparison(backbone="mixer").table)
    assert "metatt-4+1d generated" in methods_of("learner-texts", TABLE_SETTINGS["learner-texts"])
    without = comparison("learner-emoji", left_out_vendor="apple", methods=("lora",), seeds=(0,)).runs({})
    assert without[0].trained == TRAINED_WITHOUT_VENDORS and without[0].adapter.targets == "conv"
    with pytest.raises(ValueError, match="unknown row 'lorra'; did you mean 'lora'"):
        comparison(methods=("lorra",)).runs({})


def test_the_command_reports_from_rows_alone(tmp_path):
    pytest.importorskip("matplotlib")
    store = RowStore(tmp_path / "rows.jsonl")
    for row in table_rows(comparison()):
        store.append(row)
    page = tmp_path / "table.html"
    arguments = ("table", NAME, "--rows", store.path, "--out", tmp_path / "out", "--html", page)
    code, out, _ = papers_command(*arguments, "--json")
    assert code == 0 and len(json.loads(out)["rows"]) == 8
    for table in json.loads(out)["tables"]:
        assert all(f">{escape(cell)}<" in page.read_text() for line in table["cells"] for cell in line)
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "learner-attributes-fashion-mnist-resnet.md",
        "learner-attributes-fashion-mnist-resnet.png",
    ]
