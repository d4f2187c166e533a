"""The table of MetaLoRA: which runs it takes, and what is reported and drawn from rows alone."""

import dataclasses
import json

import pytest
import torch

from metalora.bench.store import RowStore, make_row, run_key
from metalora.config import AdapterConfig, ConditionConfig, TrainConfig, to_dict
from metalora_papers.cli import main
from metalora_papers.config import RunConfig, TableConfig
from metalora_papers.metalora.line_ups import adapters
from metalora_papers.metalora.table import ImageComparison, primary_columns

pytest.importorskip("timm")


def comparison(**settings):
    return ImageComparison("metalora", TableConfig(**settings))


METHODS = ("original", "metalora-cp", "metalora-tr", "lora", "multi-lora", "moe-lora")
FULL = "every weight"
GENERATED = ("metalora-cp", "metalora-tr")
CELLS = [f"{d}_domain_{c}_class" for d in ("seen", "unseen") for c in ("seen", "unseen")]


def made_up(method, seed, suite="attributes", score=None, split="test", lr=5e-3):
    """A row as a run would have written it; CP scores 0.8, TR 0.7, every static method less, seeds a little apart."""
    score = {"metalora-cp": 0.8, "metalora-tr": 0.7, "lora": 0.5}.get(method, 0.4) if score is None else score
    score += 0.01 * seed * (1 + [*METHODS, FULL].index(method))
    summary = {"trained_mean": score, "unseen_class": score / 2, "held_out_mean": score / 4, "per_task": {"hue": score}}
    by_cell = {"k5": {cell: score / (k + 1) for k, cell in enumerate(CELLS)}}
    results = {
        "attributes": {name: summary for name in ("k5", "k10", "k20", "lda", "stats_lda", "fused")},
        "cue": {"clean": by_cell, "own": by_cell},
    }[suite]
    if method in GENERATED and suite == "attributes":
        results = results | {"other_support": {"trained_mean": 0.3}, "selected": summary}
    results = results | {"num_params": 0 if method == "original" else 1000 + (method not in GENERATED), "loss": None}
    run = RunConfig(suite=suite, method=method, full=method == FULL, seed=seed, split=split, train=TrainConfig(lr=lr))
    config = to_dict(run)
    key = run_key(config)
    return make_row(key=key, suite=suite, config=config, seed=seed, results=results, seconds=1.0)


def table_rows(suite="attributes"):
    return [made_up(method, seed, suite) for seed in (0, 1) for method in METHODS]


@pytest.mark.parametrize("suite", ["attributes", "cue"])
def test_a_report_of_two_seeds_has_tables_and_comparisons(suite):
    found = comparison(suite=suite).report(table_rows(suite))
    first, last = found.tables[0], found.tables[-1]
    plain = ["stats + LDA"] if suite == "attributes" else []
    assert [cells[0] for cells in first.cells] == [*METHODS, *plain]
    assert first.columns[2:-1] == tuple(primary_columns(suite).values())
    assert dict(zip(first.columns, first.cells[1], strict=True))["seeds"] == "2"
    assert len(found.comparisons) == 4 * (1 + len(plain)) == len(last.cells)
    for one in found.comparisons:
        assert one.treatment in GENERATED and one.seeds == (0, 1) and one.difference > 0
        assert one.baseline in ("lora", *plain)
    if suite == "attributes":
        one = next(c for c in found.comparisons if c.treatment == "metalora-cp" and c.metric == "k5.trained_mean")
        # seeds differ by 0.02 for CP and 0.04 for LoRA: 0.80 - 0.50 and 0.82 - 0.54
        assert (
            one.baseline == "lora"
            and one.difference == pytest.approx(0.29)
            and one.treatment_mean == pytest.approx(0.81)
        )
    json.dumps(found.to_json(), allow_nan=False)


def test_a_report_of_one_seed_or_of_some_methods_has_no_comparison():
    rows = table_rows()
    assert not comparison().report([row for row in rows if row["seed"] == 0]).comparisons
    assert not comparison().report([row for row in rows if row["config"]["method"] != "moe-lora"]).comparisons


@pytest.mark.parametrize("suite", ["attributes", "cue"])
def test_the_plot_is_a_picture(suite, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    [path] = comparison(suite=suite).plot(table_rows(suite), tmp_path)
    with image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_only_rows_of_the_table_are_reported():
    rows = [*table_rows(), *table_rows("cue"), made_up("lora", 0, split="val"), made_up("lora", 0, score=0.9)]
    found = comparison(methods=("lora",)).rows_of(rows)
    assert [row["seed"] for row in found] == [0, 1] and found[0]["results"]["k5"]["trained_mean"] == 0.9  # the last
    with pytest.raises(ValueError, match="no test row of suite 'attributes', data 'digits'"):
        comparison(data="digits").rows_of(rows)


def test_the_rate_is_chosen_on_validation_rows_by_the_first_metric():
    rows = [made_up("lora", 0, score=s, split="val", lr=lr) for s, lr in ((0.3, 1e-3), (0.5, 2e-3), (0.4, 3e-3))]
    rows += [made_up("lora", 0, score=0.9, lr=9e-3), made_up("metalora-cp", 0, score=0.1, split="val", lr=4e-3)]
    assert comparison().chosen_rates(rows) == {("lora",): 2e-3, ("metalora-cp",): 4e-3}


# ---- the runs of a table -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suite", ["attributes", "cue"])
def test_static_methods_are_at_least_as_large_as_generated_ones(suite):
    import metalora
    from metalora_papers.metalora.backbones import build

    size = 32 if suite == "attributes" else 28
    counts = {}
    for run in comparison(suite=suite, seeds=(0,)).runs({}):
        if run.adapter is not None:
            model = build("resnet", size, 6)
            model.reset_classifier(0)
            counts[run.method] = metalora.attach(model, run.adapter, example=torch.zeros(1, 3, size, size)).num_params()
    assert set(counts) == set(METHODS) - {"original"}
    largest = max(counts[name] for name in GENERATED)
    assert all(largest <= counts[name] < 1.35 * largest for name in counts if name not in GENERATED)


@pytest.mark.parametrize("name, generated", [("film", True), ("film, static", False)])
def test_film_is_a_row_of_a_table_that_names_it(name, generated):
    [run] = comparison(methods=(name,), seeds=(0,)).runs({})
    assert run.adapter.method == "film"
    assert (run.adapter.condition.scope != "constant") is generated
    assert name not in {run.method for run in comparison(methods=(), seeds=(0,)).runs({})}
    row = made_up("lora", 0)
    row["config"]["method"] = name
    assert comparison(methods=(name,)).rows_of([row]) == [row]


def test_runs_differ_in_method_and_seed_only_and_whole_seeds_come_first():
    found = comparison(seeds=(0, 1), steps=7, lr=0.1).runs({("lora",): 0.2})
    assert [run.seed for run in found] == [0] * 6 + [1] * 6 and len({run_key(to_dict(run)) for run in found}) == 12
    plain = {
        repr(dataclasses.replace(run, method="", adapter=None, seed=0, train=TrainConfig(steps=7, lr=0.1)))
        for run in found
    }
    assert len(plain) == 1
    assert {run.train.lr for run in found if run.method == "lora"} == {0.2}
    assert {run.train.lr for run in found if run.method != "lora"} == {0.1}
    assert all(run.adapter is None or run.adapter.seed == run.seed for run in found)


def test_rates_are_chosen_on_another_split_and_seed():
    table = TableConfig(seeds=(0, 1), lr_grid=(0.1, 0.2))
    found = ImageComparison("metalora", table).choosing_runs()
    assert {run.split for run in found} == {"val"} and not {run.seed for run in found} & set(table.seeds)
    assert len(found) == 10 and {run.train.lr for run in found} == {0.1, 0.2}


def test_full_is_a_row_by_name_at_a_hundredth_of_the_rate():
    named = TableConfig(seeds=(0,), methods=("original", "full"), lr_grid=(0.1, 0.2))
    found = ImageComparison("metalora", named)
    first, whole = found.runs({("every weight",): 0.2})
    assert (first.method, first.full, whole.method, whole.full) == ("original", False, "every weight", True)
    assert whole.adapter is None and whole.train.lr == pytest.approx(0.002)
    assert [run.train.lr for run in found.choosing_runs()] == pytest.approx([0.001, 0.002])
    rows = [made_up("original", 0), made_up("every weight", 0, lr=0.002)]
    assert found.rows_of(rows) == rows and not any(run.full for run in comparison(seeds=(0,)).runs({}))
    with pytest.raises(ValueError, match="unknown row 'ful'; did you mean 'full'"):
        adapters(TableConfig(methods=("ful",)))


def test_the_condition_fits_the_suite():
    scopes = {}
    for suite in ("attributes", "cue"):
        (run,) = comparison(suite=suite, seeds=(0,), methods=("metalora-cp",)).runs({})
        scopes[suite] = run.adapter.condition
    assert scopes["attributes"] == ConditionConfig(scope="support", hidden=16) and scopes["cue"].scope == "sample"
    (run,) = comparison(seeds=(0,), methods=("lora",)).runs({})
    assert isinstance(run.adapter, AdapterConfig) and run.adapter.condition.scope == "constant"


# ---- the command ---------------------------------------------------------------------------------------------------
def test_the_command_reports_from_rows_alone(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    store = RowStore(tmp_path / "rows.jsonl")
    for row in table_rows():
        store.append(row)
    arguments = ["--rows", str(store.path), "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr("sys.argv", ["metalora-papers", "table", "metalora", *arguments])
    main()
    found = json.loads(capsys.readouterr().out)
    assert len(found["comparisons"]) == 8 and len(found["rows"]) == 12
    assert sorted(path.suffix for path in (tmp_path / "out").glob("[!.]*")) == [".md", ".png"]


def test_the_command_reports_a_table_on_a_folder(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    store = RowStore(tmp_path / "rows.jsonl")
    for row in table_rows():
        row["config"]["data"] = "folder:/my/cats"
        store.append(row)
    arguments = ["--rows", str(store.path), "--out", str(tmp_path / "out"), "--data", "folder:/my/cats"]
    monkeypatch.setattr("sys.argv", ["metalora-papers", "table", "metalora", *arguments])
    main()
    assert (tmp_path / "out").exists()


def test_rows_at_a_rate_that_validation_did_not_choose_are_left_out():
    choice = [made_up("lora", 1000, "cue", score, "val", lr) for lr, score in ((0.01, 0.1), (0.02, 0.2))]
    tests = [made_up("lora", seed, "cue", 0.3, lr=lr) for lr in (0.01, 0.02) for seed in (0, 1)]
    cue = comparison(suite="cue")
    assert [row["config"]["train"]["lr"] for row in cue.rows_of(choice + tests)] == [0.02, 0.02]
    assert cue.rows_of(tests) == tests  # no choice was made: all are kept


def test_equal_rank_is_never_more_than_that_of_cp():
    found = adapters(TableConfig(suite="cue", equal_rank=True))
    ranks = {name: found[f"{name} at rank 9"].rank for name in ("lora", "multi-lora", "moe-lora")}
    assert ranks == {"lora": 9, "multi-lora": 2, "moe-lora": 8} and found["metalora-cp at rank 3"].rank == 3
