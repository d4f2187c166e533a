"""Fig. 13 and Table 18 of MetaTT: rows of a tiny Llama that is trained for a few steps."""

import json
from dataclasses import replace

import pytest
from papers_oracles.commonsense import write_folder, write_model

from metalora import AdapterConfig, ConditionConfig
from metalora.bench.store import RowStore
from metalora.config import RankBudgetConfig, RankScheduleConfig, TrainConfig
from metalora_papers.config import CausalRunConfig
from metalora_papers.metatt.figure_13 import Figure13
from support.command import papers_command

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from metalora_papers.execution import execute  # noqa: E402 (after the skip)

CONSTANT = ConditionConfig(scope="constant")
PLAIN = AdapterConfig("lora", 2, targets="q_proj,v_proj", condition=CONSTANT)
METATT = replace(PLAIN, method="metatt-4d", rank=4, alpha=1.0, init="ze-no-no-id")
TRAIN = TrainConfig(steps=6, lr=1e-2, schedule="linear", store="float32")
SWEEPS = replace(TRAIN, rank_schedule=RankScheduleConfig(steps=(2, 4), final=2, mode="paper"))
BUDGET = replace(TRAIN, rank_budget=RankBudgetConfig(final=2, start=1, hold=1, every=2))
METHODS = {
    "lora, rank 2": (PLAIN, TRAIN),
    "metatt-4d, rank 4": (METATT, TRAIN),
    "metatt-4d, rank 4 to 2": (METATT, SWEEPS),
    "adalora, rank 4 to 2": (replace(PLAIN, method="adalora", rank=4), BUDGET),
}
STARS = {"metatt-4d, rank 4 to 2": [2, 4], "adalora, rank 4 to 2": [2, 4, 5]}  # AdaLoRA: every second, and the last
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    """Rows of all methods and seeds, with one on the validation split."""
    data, model = write_folder(tmp_path_factory.mktemp("data")), write_model(tmp_path_factory.mktemp("model"))
    config = CausalRunConfig(
        data_root=str(data), tasks=("boolq", "winogrande"), model=f"hf:{model}", batch=4, examples=40, evaluate_every=2
    )
    runs = [
        replace(config, method=adapter.method, adapter=replace(adapter, seed=seed), train=train, seed=seed)
        for adapter, train in METHODS.values()
        for seed in SEEDS
    ]
    store = RowStore(tmp_path_factory.mktemp("rows") / "rows.jsonl")
    for run in (*runs, replace(runs[0], split="val")):
        store.append(execute(run).row)
    return store.path


def by_hand(rows, method):
    """Step -> mean over the seeds of the mean accuracy, from the rows of one entry of `METHODS`."""
    adapter, train = METHODS[method]
    of_method = [
        row for row in rows
        if row["config"]["adapter"]["method"] == adapter.method and row["config"]["split"] == "test"
        and bool(row["config"]["train"]["rank_schedule"]) == bool(train.rank_schedule)
    ]  # fmt: skip
    assert len(of_method) == len(SEEDS)
    histories = [row["results"]["history"] for row in of_method]
    return {
        points[0]["step"]: sum(sum(point["accuracy"].values()) / 2 for point in points) / len(SEEDS)
        for points in zip(*histories, strict=True)
    }


def test_the_command_prints_the_last_scores_and_draws_the_curves(rows_file, tmp_path):
    code, out, _ = papers_command("table", "metatt-fig13", "--rows", rows_file, "--out", tmp_path, "--json")
    assert code == 0
    found, rows = json.loads(out), RowStore(rows_file).rows()
    (table,) = found["tables"]
    assert table["columns"] == ["method", "seeds", "mean accuracy", "parameters", "seconds a run"]
    cells = {line[0]: line[1:] for line in table["cells"]}
    assert list(cells) == list(METHODS)
    for method, (seeds, mean, parameters, _) in cells.items():
        assert seeds == "2" and mean.split(" ")[0] == f"{100 * by_hand(rows, method)[6]:.1f}"
        assert int(parameters) > 0
    # of a train of rank r: 4 cores over inputs, layers, projections, and outputs of both widths
    assert cells["metatt-4d, rank 4"][2] == str(4 * (32 + 32 + 16) + 16 * 4)
    assert cells["metatt-4d, rank 4 to 2"][2] == str(2 * (32 + 32 + 16) + 4 * 4)
    (picture,) = found["plots"]
    assert (tmp_path / picture).stat().st_size > 5_000 and (tmp_path / "metatt-fig13.md").is_file()
    assert len(found["rows"]) == len(METHODS) * len(SEEDS)  # not that of the validation split


def test_curves_are_means_over_seeds_and_stars_lie_on_them(rows_file, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *path, **options: figures.append(self))
    rows = RowStore(rows_file).rows()
    figure_13 = Figure13()
    figure_13.plot(figure_13.rows_of(rows), tmp_path)
    (axes,) = figures[0].axes
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    curves = {name: container.lines[0].get_xydata() for name, container in zip(names, axes.containers, strict=True)}
    assert list(curves) == list(METHODS)
    for name, points in curves.items():
        assert dict(points.tolist()) == pytest.approx(by_hand(rows, name)) and [x for x, _ in points] == [2, 4, 6]
    offsets = [part.get_offsets() for part in axes.collections if len(part.get_offsets()) > 1]
    assert [[x for x, _ in stars] for stars in offsets] == list(STARS.values())
    for (name, steps), stars in zip(STARS.items(), offsets, strict=True):
        score = by_hand(rows, name)
        score[5] = (score[4] + score[6]) / 2
        assert [y for _, y in stars] == pytest.approx([score[step] for step in steps])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda row: {**row, "suite": "news"}, "metatt-fig13: no test row of suite commonsense"),
        (lambda row: {**row, "config": row["config"] | {"model": f"hf:{row['seed']}"}}, "several model: hf:0; hf:1"),
        (lambda row: {**row, "config": row["config"] | {"examples": 40 + row["seed"]}}, "several examples: 40; 41"),
    ],
)
def test_rows_that_cannot_be_one_figure(change, message, rows_file):
    rows = [change(row) for row in RowStore(rows_file).rows()]
    with pytest.raises(ValueError, match=message):
        Figure13().rows_of(rows)


def test_rows_without_scores_along_the_way_have_a_table_and_no_figure(rows_file, tmp_path):
    rows = [row | {"results": row["results"] | {"history": []}} for row in RowStore(rows_file).rows()]
    rows = Figure13().rows_of(rows)
    assert Figure13().plot(rows, tmp_path) == [] and len(Figure13().report(rows).tables[0].cells) == len(METHODS)
