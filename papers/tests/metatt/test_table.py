"""MetaTT's comparisons on text: the runs they take, and their reports and figures from made-up rows."""

import json
from dataclasses import replace
from functools import cache

import pytest
from papers_oracles.encoder import write_encoder

from metalora.adapters.attach import count_params
from metalora.adapters.targets import find_targets
from metalora.bench.store import RowStore, make_row, run_key
from metalora.config import RankScheduleConfig, TwoSiteConfig, to_dict
from metalora.executors.config import ExecutorConfig
from metalora_papers.config import TEXT_TABLES, TextTableConfig
from metalora_papers.metatt.heads import HEADS
from metalora_papers.metatt.jobs import DESIGNS
from metalora_papers.metatt.table import TextComparison
from metalora_papers.metatt.text import encoder_without_weights
from metalora_papers.scheduler import run_all
from metalora_papers.tables import run_table


def runs(name, table, rates=None):
    return TextComparison(name, table).runs(rates or {})


def choosing_runs(name, table):
    return TextComparison(name, table).choosing_runs()


def rows_of(name, rows, table):
    return TextComparison(name, table).rows_of(rows)


def report(name, rows, table):
    return TextComparison(name, table).report(rows).tables


def chosen_rates(rows):
    return TextComparison("metatt-2", TABLE).chosen_rates(rows)


TABLE = TextTableConfig(seeds=(0, 1), lr_grid=(1e-3, 4e-3))
TASKS = TABLE.tasks
SCORES = {"lora": 0.8, "metatt-4d": 0.78, "metatt-5d": 0.7, "metatt-4+1d": 0.79, "head alone": 0.5}


def made_up(run):
    score = SCORES.get(run.method, 0.9 - 0.01 * len(run.method)) + 0.01 * (run.seed % 10) * len(run.method) / 10
    accuracy = {task: score - 0.1 * k for k, task in enumerate(run.tasks)}
    left_out = {task: score - 0.2 for task in run.left_out}
    steps = range(run.train.steps // 3, run.train.steps + 1, run.train.steps // 3) if run.phases else (10, 20)
    point = {"loss": 1.0, "gradients": {"G1": 0.1, "G3[0]": 0.2}, "rank": 8, "accuracy": accuracy}
    results = {"accuracy": accuracy, "matthews": {}, "mean": sum(accuracy.values()) / len(accuracy), "num_params": 10,
               "left_out": left_out, "history": [{**point, "step": step} for step in steps]}  # fmt: skip
    config = to_dict(run)
    return {**row_frame(), "key": run_key(config), "config": config, "seed": run.seed, "results": results}


@cache
def row_frame():
    """A row; its commit and environment, which are the same for all rows of this file, take a while to read."""
    return make_row(key="", suite="news", config={}, seed=0, results={}, seconds=1.0)


def test_every_table_has_its_jobs():
    assert list(TEXT_TABLES) == list(DESIGNS)


def test_one_run_a_task_or_one_for_all():
    single, joint = runs("metatt-2", TABLE, {}), runs("metatt-3", TABLE, {})
    assert len(single) == 2 * 4 * 4 and {len(run.tasks) for run in single} == {1}
    assert all(set(run.tasks + run.left_out) == set(TASKS) for run in single)
    assert len(joint) == 2 * 5 and {run.tasks for run in joint} == {TASKS}
    by_name = {run.method: run.adapter for run in joint}
    assert by_name["head alone"] is None and by_name["lora"].alpha == 16 and by_name["metatt-4d"].alpha == 4
    assert by_name["metatt-4+1d"].tasks == 4 and by_name["metatt-4+1d"].init == "ze-id-id-id-id"
    assert by_name["metatt-5d"].init == "ze-id-id-id-id" and by_name["metatt-4d"].tasks == 1
    assert {run.adapter.seed for run in single if run.adapter and run.seed == 1} == {1}


def test_a_train_over_more_targets():
    wide = ("query", "key", "value", "attention.output.dense")
    found = {run.method: run for run in runs("metatt-2", replace(TABLE, wide_targets=wide), {})}
    assert found["metatt-4d, more targets"].adapter == replace(found["metatt-4d"].adapter, targets=wide)


def test_every_weight_learns_at_a_hundredth_of_the_rate():
    run = next(run for run in runs("metatt-2", replace(TABLE, full=True), {}) if run.method == "every weight")
    assert run.full and run.adapter is None and run.train.lr == pytest.approx(1e-5)


def test_sweeps_end_at_the_rank_that_adamw_has():
    table = replace(TABLE, steps=300, seeds=(0,), tasks=("topic",))
    plain, high, swept = runs("metatt-4", table, {})
    assert (plain.adapter.rank, high.adapter.rank, swept.adapter.rank) == (4, 8, 8)
    assert swept.train.rank_schedule.steps == (60, 100, 140, 180) and swept.train.rank_schedule.final == 4
    assert plain.train.rank_schedule is None and {run.train.lr for run in (plain, high, swept)} == {table.lr}
    later = replace(table, sweep_between=(0.5, 0.8), sweep=RankScheduleConfig(gauge="right", state="carry"))
    found = runs("metatt-4", later, {})[2].train.rank_schedule
    assert found == RankScheduleConfig(steps=(150, 180, 210, 240), final=4, gauge="right", state="carry")


def test_tenslora_has_every_construction_at_the_rank_and_at_the_count_of_lora():
    found = {run.method: run.adapter for run in runs("tenslora", replace(TABLE, seeds=(0,), tasks=("topic",)), {})}
    targets = find_targets(encoder_without_weights("minilm"), TABLE.qkv_targets)
    counts = {name: count_params(adapter, targets) for name, adapter in found.items()}
    budget = counts.pop("lora on q, k, v")
    assert budget == 6 * 3 * 8 * 768 and len(counts) == 14
    assert counts["tenslora-qkv-depth, isorank"] == 8 * (384 + 384 + 3 + 6) + 8**4  # 3 x 8 and 6 x 8 factors
    assert all(0.9 * budget < counts[name] <= budget for name in counts if name.endswith("isoparameters"))
    scales = {adapter.alpha / (adapter.rank if adapter.method == "lora" else 1) for adapter in found.values()}
    assert scales == {2.0}


def test_a_left_out_task_is_in_no_other_part_of_its_run():
    found = runs("metatt-transfer", replace(TABLE, seeds=(0,)), {})
    generated = [run for run in found if run.adapter and run.adapter.generated]
    assert {run.left_out[0] for run in generated} == set(TASKS)
    assert all(not set(run.tasks) & set(run.left_out) and len(run.tasks) == 3 for run in generated)
    single = {run.method: run for run in found if run.tasks == ("topic",)}
    assert single["lora"] in runs("metatt-2", replace(TABLE, seeds=(0,)), {})  # the same run, so the same row


def test_rates_are_chosen_by_row_and_task():
    table = replace(TABLE, full=True)
    rows = []
    for run in choosing_runs("metatt-2", table):
        assert run.split == "val" and run.seed == 1000 and run.left_out == ()
        better = (run.train.lr in (4e-3, 4e-5)) == (run.tasks[0] != "next")
        row = made_up(run)
        row["results"]["accuracy"] = {run.tasks[0]: 0.6 + 0.1 * better}
        rows.append(row)
    rates = chosen_rates(rows)
    assert rates["lora", "topic"] == 4e-3 and rates["lora", "next"] == 1e-3
    assert rates["every weight", "topic"] == pytest.approx(4e-3)
    chosen = {(run.method, run.tasks[0]): run.train.lr for run in runs("metatt-2", table, rates)}
    assert chosen["lora", "next"] == 1e-3 and chosen["every weight", "topic"] == pytest.approx(4e-5)
    assert choosing_runs("metatt-fig7", TABLE) == []


GLUE = replace(TABLE, suite="glue", tasks=("cola", "stsb", "rte"), evaluate_every=10, methods=("lora", "metatt-4d"))


def glue_row(run):
    """A row whose accuracy of CoLA rises with the rate and with the steps, while Matthews' correlation falls."""
    row = made_up(run)
    low = run.train.lr * 10 + 0.001 * run.seed
    first, last = (
        {
            "accuracy": {"cola": 0.8 + low + late, "rte": 0.6 + late},
            "matthews": {"cola": 0.5 - 2 * late - low, "rte": 0.1},
            "spearman": {"stsb": 0.7 - low},
            "pearson": {"stsb": 0.75},
        }
        for late in (0, 0.1)
    )
    row["results"] |= {**last, "history": [first | {"step": 10, "rank": 8, "gradients": {}}]}
    row["config"] |= {"tasks": run.tasks}
    for scores in (row["results"], *row["results"]["history"]):
        for name in ("accuracy", "matthews", "spearman", "pearson"):
            scores[name] = {task: value for task, value in scores[name].items() if task in run.tasks}
    return row


@pytest.mark.parametrize(
    ("report", "scores"),  # at the rate of 1e-3: last 0.3 - 0.01, best 0.5 - 0.01; joint, the best mean is that of last
    [("last", ("29.0", "69.0", "70.0", "56.0")), ("best", ("49.0", "69.0", "70.0", "62.7"))],
)
def test_the_metrics_of_glue_judge_tasks_means_and_rates(report, scores):
    table = replace(GLUE, report=report, seeds=(0,))
    comparison = TextComparison("metatt-2", table)
    choosing = [glue_row(run) for run in comparison.choosing_runs()]
    assert {run.evaluate_every for run in comparison.choosing_runs()} == {10 if report == "best" else 0}
    rates = comparison.chosen_rates(choosing)
    assert rates["lora", "cola"] == rates["lora", "stsb"] == 1e-3  # the accuracy of CoLA is best at 4e-3
    rows = [glue_row(run) for run in comparison.runs(rates)]
    found = comparison.report(rows).tables[0]
    assert found.columns[2:7] == ("cola, Matthews", "stsb, Spearman", "rte, accuracy", "mean", "stsb, Pearson")
    assert found.cells[0][:6] == ("lora", "1", *scores) and found.cells[0][6] == "75.0"
    assert ("best evaluation of each run" in found.note) == (report == "best")


def test_the_best_evaluation_needs_evaluations():
    with pytest.raises(ValueError, match="report best needs evaluations along the way; give evaluate_every"):
        runs("metatt-2", replace(GLUE, report="best", evaluate_every=0))
    table = replace(TABLE, report="best", evaluate_every=10)
    with pytest.raises(ValueError, match="scored after the last step only"):
        report("metatt-transfer", [made_up(run) for run in runs("metatt-transfer", table)], table)


def test_margins_are_those_of_equation_7():
    table = replace(TABLE, tasks=("topic",), methods=("lora",), seeds=(0, 1, 2))
    rows = [made_up(run) for run in runs("metatt-2", table)]
    for row, accuracy in zip(rows, (0.5, 0.6, 0.7), strict=True):
        row["results"]["accuracy"] = {"topic": accuracy}
    margins = report("metatt-2", rows, table)[1]
    assert margins.cells == (("lora", "11.32", "11.32"),)  # 1.96 * 0.1 / sqrt(3)


# A figure has a panel for each task, and drawing it is most of the time: that with two figures has all panels.
REPORTED = {name: TABLE if name == "metatt-3" else replace(TABLE, tasks=TASKS[:2]) for name in DESIGNS}


@pytest.fixture(scope="module")
def all_rows(tmp_path_factory):
    """One file that holds the rows of every comparison."""
    rows = [made_up(run) for name in DESIGNS for run in runs(name, REPORTED[name], {})]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in {row["key"]: row for row in rows}.values()))
    return path


@pytest.mark.parametrize("name", DESIGNS)
def test_a_report_and_its_figures(name, all_rows, tmp_path, capsys):
    table = REPORTED[name]
    run_table(name, table, tmp_path, executor=ExecutorConfig(workers=1), as_json=True, rows_file=all_rows)
    found = json.loads(capsys.readouterr().out)
    first = found["tables"][0]
    if name != "metatt-sequential":  # its columns are in a test of their own
        scores = [*(f"{task}, accuracy" for task in table.tasks), "mean"]
        assert first["columns"][2 : 2 + len(scores)] == scores
        assert first["note"].startswith("Scores after the last step")
    assert (tmp_path / f"{name}.md").exists()
    wanted = dict.fromkeys(run.method for run in runs(name, table, {}))
    if name != "metatt-transfer":
        assert {cells[0] for cells in first["cells"]} == set(wanted)
        assert {cells[1] for cells in first["cells"]} == {"2"}
        assert "margin of error" in found["tables"][1]["title"]
        assert (len(found["tables"]) == 3) == bool(DESIGNS[name].reference)
    for picture in found["plots"]:
        assert (tmp_path / picture).stat().st_size > 5_000
    assert len(found["plots"]) == (2 if name == "metatt-3" else 1)


def drawn(monkeypatch, folder, name, table, row=made_up):
    """The figure that a comparison draws from made-up rows."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *path, **options: figures.append(self))
    rows = [row(run) for run in runs(name, table)]
    TextComparison(name, table).plot(rows, folder)
    return figures[0]


def test_sweeps_are_arrows_with_the_rank_after_them(tmp_path, monkeypatch):
    table = replace(TABLE, tasks=("topic",), steps=20, sweeps=2, sweep_between=(0.5, 0.75))
    figure = drawn(monkeypatch, tmp_path, "metatt-4", table)
    arrows = [text for text in figure.axes[0].texts if text.arrow_patch is not None]
    assert [(text.get_text(), text.xy[0]) for text in arrows] == [("r=7", 10), ("r=4", 15)]
    swept = 0.9 - 0.01 * len("metatt-4d, rank 8 swept to 4") + 0.005 * len("metatt-4d, rank 8 swept to 4") / 10
    assert [text.xy[1] for text in arrows] == pytest.approx([swept, swept])


@pytest.mark.parametrize("tasks", [("topic",), ("topic", "next")])
def test_the_legend_lies_within_the_figure(tmp_path, monkeypatch, tasks):
    figure = drawn(monkeypatch, tmp_path, "metatt-4", replace(TABLE, tasks=tasks, method="metatt-5d"))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    left, right = legend.get_window_extent().intervalx
    assert 0 <= left < right <= figure.bbox.width and len(legend.get_texts()) == 3
    bottom, top = legend.get_window_extent().intervaly
    assert 0 <= bottom < top <= figure.bbox.height


def test_a_figure_has_a_line_for_every_method_and_the_metric_on_its_axis(tmp_path, monkeypatch):
    methods = ("head alone", "lora", "metatt-4d", "metatt-5d", "vera", "lotr", "lorta", "dora", "pissa", "adalora")
    table = replace(GLUE, tasks=("cola", "rte"), methods=methods, seeds=(0,))
    axes = drawn(monkeypatch, tmp_path, "metatt-2", table, glue_row).axes
    assert [one.get_ylabel() for one in axes] == ["Matthews", "accuracy"]
    lines = [container.lines[0] for container in axes[0].containers]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(methods)
    assert lines[0].get_ydata() == pytest.approx([0.5 - 0.01])  # Matthews' of the first evaluation, not the accuracy


def test_the_reference_of_transfer_is_the_best_single_task_adapter():
    rows = [made_up(run) for run in runs("metatt-transfer", TABLE, {})]
    for row in rows:
        if row["config"]["method"] == "lora" and row["config"]["tasks"] == ("next",):
            row["results"]["left_out"]["topic"] = 0.95
    table = report("metatt-transfer", rows, TABLE)[0]
    topic = {cells[0]: cells[2] for cells in table.cells}
    assert topic["best single-task adapter"].startswith("95.0") and topic["frozen encoder"].startswith("30")
    assert {"metatt-4d, the other tasks", "metatt-4+1d generated, the other tasks"} < set(topic)


def test_a_table_takes_the_rows_of_its_own_head():
    table = replace(TABLE, methods=("lora",), tasks=("topic",), seeds=(0,))
    linear, roberta = ([made_up(run) for run in runs("metatt-2", replace(table, head=head))] for head in HEADS)
    del linear[0]["config"]["head"]  # as in a row from before there was a choice
    for head, expected in zip(HEADS, (linear, roberta), strict=True):
        assert rows_of("metatt-2", linear + roberta, replace(table, head=head)) == expected
    with pytest.raises(ValueError, match="no row of minilm, head roberta, on topic"):
        rows_of("metatt-2", linear, replace(table, head="roberta"))


def test_a_method_that_lacks_a_task_is_left_out():
    rows = [made_up(run) for run in runs("metatt-2", TABLE, {})]
    rows = [row for row in rows if (row["config"]["method"], row["config"]["tasks"]) != ("metatt-5d", ("next",))]
    assert "metatt-5d" not in {cells[0] for cells in report("metatt-2", rows, TABLE)[0].cells}
    with pytest.raises(ValueError, match="no method has a row on each of topic"):
        report("metatt-2", rows[:1], TABLE)


def test_rows_of_several_settings_are_told_apart():
    table = replace(TABLE, tasks=("topic",), methods=("lora",), seeds=(0,))
    rows = [made_up(run) for lr in (1e-3, 4e-3) for run in runs("metatt-2", replace(table, lr=lr), {})]
    with pytest.raises(ValueError, match="'lora' has seed 0 on 'topic' twice"):
        report("metatt-2", rows, table)
    for run in choosing_runs("metatt-2", table):
        row = made_up(run)
        row["results"]["accuracy"] = {"topic": run.train.lr}
        rows.append(row)
    assert [row["config"]["train"]["lr"] for row in rows_of("metatt-2", rows, table)] == [4e-3]


def test_what_has_a_row_is_not_run_again(tmp_path):
    store = RowStore(tmp_path / "rows.jsonl")
    for run in runs("metatt-3", TABLE, {}):
        store.append(made_up(run))
    assert run_all(runs("metatt-3", TABLE, {}), tmp_path) == store.rows()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(methods=("metatt-4",)), "unknown row 'metatt-4'; did you mean 'metatt-4d'"),
        (dict(methods=("verra",)), "unknown row 'verra'; did you mean 'vera'"),
        (dict(methods=("metatt-4d, rank x",)), "unknown row 'metatt-4d, rank x'; did you mean 'metatt-4d'"),
        (dict(tasks=("topics",)), "unknown text task 'topics'; did you mean 'topic'"),
    ],
)
def test_unknown_names(changes, message):
    with pytest.raises(ValueError, match=message):
        runs("metatt-2", replace(TABLE, **changes), {})


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("metatt-4", dict(method="metatt-4"), "unknown method 'metatt-4'; did you mean 'metatt-4d'"),
        ("metatt-fig4", dict(method="lora"), "lora has no train of cores .* one are metatt-4d, metatt-5d, metatt-4.1d"),
        ("metatt-fig4", dict(method="metatt-4"), "unknown method 'metatt-4'; did you mean 'metatt-4d'"),
        ("metatt-fig7", dict(lr_grid=()), "a point for every learning rate; give lr_grid"),
        ("metatt-sequential", {}, "it has a task A and a task B; give two tasks, got topic, same-article, acceptable"),
        ("metatt-sequential", dict(tasks=("topic", "topic")), "'topic', which is there twice"),
        ("metatt-sequential", dict(tasks=TASKS[:2], report="best"), "those after each phase; report is last"),
        ("metatt-transfer", dict(methods=("vera",)), "table metatt-transfer: unknown row 'vera'"),
        (
            "tenslora",
            dict(methods=("tenslora-qkv-depth-cp, by spectra",)),
            "one rank, so that there is nothing to share",
        ),
        ("metatt-4", dict(methods=("metatt-4d, rank 3, two-site",)), "unknown row 'metatt-4d, rank 3, two-site'"),
        ("metatt-fig9", dict(methods=("full",)), "table metatt-fig9: unknown row 'every weight'"),
    ],
)
def test_what_a_table_refuses(name, changes, message):
    with pytest.raises(ValueError, match=message):
        runs(name, replace(TABLE, **changes))


@pytest.mark.parametrize(
    "name, asked, found",
    [
        ("metatt-2", ("vera", "lora"), {"lora", "vera"}),
        ("metatt-2", ("full", "frozen"), {"every weight", "frozen"}),
        ("metatt-4", ("adalora", "metatt-4d, rank 4"), {"metatt-4d, rank 4", "adalora"}),
        ("metatt-fig4", ("metatt-4d, ze-id-id-id", "lora"), {"metatt-4d, ze-id-id-id", "lora"}),
        ("metatt-fig7", ("vera", "full"), {"vera, lr 0.001", "vera, lr 0.004", "every weight, lr 1e-05",
                                           "every weight, lr 4e-05"}),
        ("metatt-fig9", ("vera",), {f"vera, rank {rank}" for rank in (4, 8, 16, 32)}),
        ("metatt-sequential", ("lora", "full"), {"lora", "every weight"}),
        ("tenslora", ("tenslora-qkv-depth-tt", "lora on q, k, v"), {"tenslora-qkv-depth-tt", "lora on q, k, v"}),
    ],
)  # fmt: skip
def test_further_rows_by_name(name, asked, found):
    tasks = TASKS[:2] if name == "metatt-sequential" else ("topic",)
    assert {run.method for run in runs(name, replace(TABLE, methods=asked, tasks=tasks))} == found


SWEPT = "metatt-4d, rank 8 swept to 2"
FUTURES = {
    "metatt-4d, rank 2": (2, None, None),
    SWEPT: (8, RankScheduleConfig(steps=(120, 200, 280, 360), final=2), None),
    f"{SWEPT} by importance": (
        8, RankScheduleConfig(steps=(120, 200, 280, 360), final=2, importance="sensitivity"), None,
    ),
    "metatt-4d, rank 2, two-site": (2, None, TwoSiteConfig(bond_steps=48, start=120, rank=2)),
    f"{SWEPT}, two-site": (8, None, TwoSiteConfig(bond_steps=48, start=120, rank=2)),  # 3 bonds: 5 visits
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_one_command_compares_the_futures_that_the_paper_names(encoder):
    names = (*FUTURES, "metatt-4d, by spectra")
    table = replace(TABLE, model=encoder, steps=600, final_rank=2, methods=names, tasks=("topic",), seeds=(0,))
    by_name = {run.method: run for run in runs("metatt-4", table)}
    assert set(by_name) == set(names)
    for name, settings in FUTURES.items():
        run = by_name[name]
        assert (run.adapter.rank, run.train.rank_schedule, run.train.two_site) == settings
    targets = find_targets(encoder_without_weights(encoder), TABLE.targets)
    count, budget = (count_params(by_name[name].adapter, targets) for name in (names[-1], names[0]))
    ranks = by_name[names[-1]].adapter.rank
    assert budget - 32 - 2 * ranks["r2"] < count <= budget  # not even an outer bond can be raised once more


@pytest.mark.parametrize("form", ["", "-cp", "-tt", "-ring"])
def test_constructions_of_every_form_at_the_rank_and_at_the_parameters_of_lora(form, encoder):
    method = f"tenslora-qkv-depth{form}"
    names = [f"{method}, isorank", f"{method}, isoparameters"] + [f"{method}, by spectra"] * (form != "-cp")
    table = replace(TABLE, model=encoder, methods=("lora on q, k, v", *names), tasks=("topic",), seeds=(0,))
    by_name = {run.method: run.adapter for run in runs("tenslora", table)}
    targets = find_targets(encoder_without_weights(encoder), TABLE.qkv_targets)
    counts = {name: count_params(adapter, targets) for name, adapter in by_name.items()}
    assert set(counts) == {"lora on q, k, v", *names} and by_name[names[0]].rank == 8
    assert all(0 < counts[name] <= counts["lora on q, k, v"] for name in names[1:])
    if form != "-cp":
        assert len(set(by_name[names[2]].rank.values())) > 1  # of bonds whose modes have 32, 2, 3 and 32 entries
    scales = {(adapter.targets, adapter.alpha) for name, adapter in by_name.items() if name in names}
    assert scales == {(TABLE.qkv_targets, 2.0)}


def test_a_further_construction_of_tenslora_has_the_targets_and_the_scale_of_the_others():
    asked = ("tenslora-qkv-depth-tt", "tenslora-qkv-depth, isorank")
    rows = runs("tenslora", replace(TABLE, methods=asked, tasks=("topic",), seeds=(0,)))
    found = {run.method: (run.adapter.targets, run.adapter.alpha, run.adapter.rank) for run in rows}
    assert set(found.values()) == {(TABLE.qkv_targets, 2.0, 8)} and set(found) == set(asked)


def test_nothing_is_chosen_for_a_row_that_trains_nothing():
    table = replace(TABLE, methods=("frozen", "lora"))
    assert {run.method for run in choosing_runs("metatt-2", table)} == {"lora"}
