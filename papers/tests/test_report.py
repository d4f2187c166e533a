"""Tables, comparisons and plots of made-up rows, against means, tests and text worked out apart."""

import io
import math
import statistics

import pytest
import scipy.stats
from rich.console import Console

from metalora_papers.report import (
    Table,
    compare_methods,
    comparison_table,
    margin_table,
    plot_bars,
    print_table,
    summarise,
    summary_table,
    write_markdown,
)
from metalora_papers.rows import latest

ACCURACY = {
    "original": (0, [0.30, 0.31, 0.29, 0.30, 0.32, 0.30]),
    "lora": (500, [0.50, 0.52, 0.51, 0.49, 0.50, 0.53]),
    "moe": (600, [0.55, 0.54, 0.56, 0.55, 0.57, 0.53]),
    "tiny": (100, [0.90, 0.91, 0.92, 0.90, 0.90, 0.91]),
    "cp": (400, [0.60, 0.66, 0.61, 0.59, 0.63, 0.60]),
    "tr": (600, [0.56, 0.55, 0.56, 0.58, 0.56, 0.54]),
}


def row(method, seed, value, size, **config):
    return {
        "key": f"{method}-{seed}-{config}",
        "suite": "attributes",
        "seed": seed,
        "config": {"method": method, "label": f"The {method}", "data": "digits", **config},
        "results": {
            "acc": value,
            "num_params": size,
            "per": {"hue": value / 2},
            "other": value / 3 if method in ("cp", "tr") else None,
        },
    }


ROWS = [row(m, seed, v, size) for seed in range(6) for m, (size, vs) in ACCURACY.items() for v in vs[seed : seed + 1]]


def test_summaries_are_of_each_group_in_order():
    found = summarise(ROWS, metric="acc")
    assert [one.group for one in found] == [{"method": name} for name in ACCURACY]
    for one, (_, values) in zip(found, ACCURACY.values(), strict=True):
        assert one.summary.mean == pytest.approx(statistics.mean(values))
        assert one.summary.std == pytest.approx(statistics.stdev(values))
        assert min(values) < one.summary.low < one.summary.mean < one.summary.high < max(values)
        assert one.by_seed == dict(enumerate(values)) and one.summary.n == 6


def test_metrics_and_fields_are_dotted_paths():
    hue = {one.group["label"]: one.summary.mean for one in summarise(ROWS, ("suite", "label"), metric="per.hue")}
    assert hue["The lora"] == pytest.approx(statistics.mean(ACCURACY["lora"][1]) / 2)
    assert [one.group["method"] for one in summarise(ROWS, metric="other")] == ["cp", "tr"]
    deep = [row("a", 0, 0.5, 1, adapter={"rank": rank}) for rank in (4, 16)]
    assert [one.group for one in summarise(deep, ("adapter.rank",), metric="acc")] == [
        {"adapter.rank": 4},
        {"adapter.rank": 16},
    ]


def test_comparison_is_with_the_best_baseline_of_at_least_the_same_size():
    found = compare_methods(
        ROWS, metric="acc", treatment_methods=["cp", "tr"], baseline_methods=["original", "lora", "moe", "tiny"]
    )
    assert [(one.treatment, one.baseline) for one in found] == [("cp", "moe"), ("tr", "moe")]  # tiny is too small
    p = {}
    for one in found:
        ours, theirs = ACCURACY[one.treatment][1], ACCURACY["moe"][1]
        p[one.treatment] = scipy.stats.ttest_rel(ours, theirs).pvalue
        assert one.p_value == pytest.approx(p[one.treatment])
        assert one.difference == pytest.approx(statistics.mean(ours) - statistics.mean(theirs))
        assert (one.treatment_mean, one.baseline_mean) == pytest.approx(
            (statistics.mean(ours), statistics.mean(theirs))
        )
        assert one.low < one.difference < one.high and one.seeds == (0, 1, 2, 3, 4, 5)
    assert p["cp"] < p["tr"]
    assert [one.p_holm for one in found] == pytest.approx([2 * p["cp"], max(2 * p["cp"], p["tr"])])


def test_equal_differences_are_a_dash_and_count_in_the_family():
    equal = [row("equal", seed, value + 0.01, 1) for seed, value in enumerate(ACCURACY["moe"][1])]
    treatments = ["cp", "equal"]
    found = compare_methods([*ROWS, *equal], metric="acc", treatment_methods=treatments, baseline_methods=["moe"])
    cp, same = found
    assert (same.p_value, same.p_holm, same.is_better) == (None, None, False) and same.difference > 0
    assert cp.p_holm == pytest.approx(2 * cp.p_value) and cp.is_better
    assert comparison_table(found).cells[1][5:7] == ("–", "–")


@pytest.mark.parametrize(("seeds", "star"), [(2, False), (3, True)])
def test_a_star_takes_three_seeds(seeds, star):
    values = {"a": (0.9, 0.8, 0.85), "b": (0.5, 0.4001, 0.4501)}
    rows = [row(name, seed, value, 1) for name, all_values in values.items() for seed, value in enumerate(all_values)]
    rows = [one for one in rows if one["seed"] < seeds]
    (found,) = compare_methods(rows, metric="acc", treatment_methods=["a"], baseline_methods=["b"])
    assert found.p_value < 0.05 and found.is_better == star


def test_where_lower_is_better_the_lowest_baseline_is_the_best():
    found = compare_methods(
        ROWS, metric="acc", treatment_methods=["cp"], baseline_methods=["lora", "moe"], higher_is_better=False
    )
    assert found[0].baseline == "lora"


def test_comparison_pairs_by_seed_whatever_the_order_and_reports_lost_seeds():
    rows = [one for one in reversed(ROWS) if (one["config"]["method"], one["seed"]) != ("cp", 2)]
    with pytest.warns(UserWarning, match=r"seeds \[2\] are in only one of cp and moe"):
        (found,) = compare_methods(rows, metric="acc", treatment_methods=["cp"], baseline_methods=["moe"])
    seeds = (0, 1, 3, 4, 5)
    oracle = scipy.stats.ttest_rel(*([ACCURACY[name][1][seed] for seed in seeds] for name in ("cp", "moe")))
    assert found.seeds == seeds and found.p_value == pytest.approx(oracle.pvalue)
    assert found.treatment_mean == pytest.approx(statistics.mean(ACCURACY["cp"][1][seed] for seed in seeds))


def test_a_table_that_was_cut_off_has_the_comparisons_that_its_rows_allow():
    rows = [one for one in ROWS if one["config"]["method"] != "cp" or one["seed"] == 0]
    call = {"metric": "acc", "treatment_methods": ["cp", "tr"], "baseline_methods": ["moe"], "size": None}
    with pytest.warns(UserWarning, match="acc: cp and moe share 1 of 2 seeds, not compared"):
        (found,) = compare_methods(rows, **call)
    alone = compare_methods(rows, **{**call, "treatment_methods": ["tr"]})
    assert [found] == alone  # and the correction of its p-value counts what was compared


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: summarise(ROWS, metric="accuracy"),
            "no row has the metric 'accuracy'; known: acc, num_params.*per.hue",
        ),
        (lambda: summarise(ROWS, metric="per"), "metric 'per' is a dict, not a number"),
        (lambda: summarise(ROWS, ("rank",), metric="acc"), "no field 'rank'; known: suite, seed.*method, label, data"),
        (lambda: summarise(ROWS, ("suite",), metric="acc"), "seed 0 6 times; filter or group by.*label, method"),
        (lambda: summarise([*ROWS, ROWS[0]], metric="acc"), "seed 0 2 times; one run, twice: see `latest`"),
        (lambda: summarise([], metric="acc"), "no row has the metric 'acc'; known: none"),
        (
            lambda: compare_methods(ROWS, metric="acc", treatment_methods=["cq"], baseline_methods=["lora"]),
            "no row of method 'cq'.*known: cp, lora",
        ),
        (
            lambda: compare_methods(ROWS, metric="acc", treatment_methods=["tr"], baseline_methods=["lora", "tiny"]),
            r"no baseline is as large as tr \(600 parameters\): lora 500, tiny 100",
        ),
        (lambda: plot_bars(ROWS, [], "x.png"), "1 to 8 metrics, not 0"),
    ],
)
def test_errors_name_what_is_wrong_and_what_is_known(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_settings_mixed_in_a_group_are_named():
    mixed = [row("cp", 0, 0.5, 1, data=data) for data in ("digits", "letters")]
    with pytest.raises(ValueError, match="filter or group by what differs: data$"):
        summarise(mixed, metric="acc")


def test_latest_keeps_the_last_row_of_each_key():
    again = row("original", 0, 0.99, 0)
    kept = latest([*ROWS, again])
    assert len(kept) == len(ROWS) and kept[0] == again and kept[1:] == ROWS[1:]


def test_summary_table_shows_intervals_counts_and_gaps():
    short = [one for one in ROWS if one["seed"] == 0 or one["config"]["method"] != "lora"]
    short += [row("large", 0, 0.25, 12345)]
    table = summary_table(short, ["acc", "other", "num_params"], by="label", title="T")
    assert table.columns == ("label", "seeds", "acc", "other", "num_params")
    cells = {line[0]: line[1:] for line in table.cells}
    assert cells["The lora"] == ("1", "0.500", "–", "500")  # one seed has no interval
    assert cells["The large"] == ("1", "0.250", "–", "12,345")
    seeds, acc, other, size = cells["The cp"]
    assert (seeds, size) == ("6", "400") and other.startswith("0.205 [")
    low, high = map(float, acc.removeprefix("0.615 [").removesuffix("]").split(", "))
    assert 0.59 < low < 0.615 < high < 0.66


def test_in_per_cent_a_count_of_one_stays_one():
    rows = [row("a", seed, value, 1) for seed, value in enumerate((0.25, 0.75))] + [row("b", 0, 0.0, 0)]
    for one in rows:
        one["results"]["seconds"] = 1
    found = summary_table(rows, ["acc", "num_params", "seconds"], percent=True, note="Of two seeds.")
    assert found.cells == (("a", "2", "50.0 ±25.0", "1", "1"), ("b", "1", "0.0", "0", "1"))
    console = Console(file=io.StringIO())
    print_table(found, console)
    assert "Of two seeds." in console.file.getvalue()


def test_a_note_is_below_its_table(tmp_path):
    write_markdown([Table("T", ("a",), (("b",),), "Of two seeds."), Table("", ("c",), ())], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text == "## T\n\n| a |\n| --- |\n| b |\n\nOf two seeds.\n\n| c |\n| --- |\n"


def test_a_margin_of_one_seed_is_a_dash():
    rows = [row("a", seed, value, 1) for seed, value in enumerate((0.5, 0.6, 0.7))] + [row("b", 0, 0.5, 1)]
    found = margin_table(rows, {"acc": "accuracy"}, title="T")
    assert found == Table("T", ("method", "accuracy"), (("a", "11.32"), ("b", "–")))  # 1.96 * 0.1 / sqrt(3)


def test_tables_are_printed_and_written(tmp_path):
    found = compare_methods(ROWS, metric="acc", treatment_methods=["cp"], baseline_methods=["moe"])
    tables = [comparison_table(found, title="Against [the] best"), Table("", ("a|b",), (("c|d",),))]
    console = Console(file=io.StringIO())
    print_table(tables[0], console)
    text = console.file.getvalue()
    assert "Against [the] best" in text and "p (Holm)" in text and "0.615, 0.550" in text
    write_markdown(tables, tmp_path / "report.md")
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "## Against [the] best" and lines[2].startswith("| metric | treatment | baseline | means |")
    assert lines[4].startswith("| acc | cp | moe | 0.615, 0.550 | +0.065 [")
    assert lines[-3:] == ["| a\\|b |", "| --- |", "| c\\|d |"]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:6]])
def test_a_plot_is_a_png_of_readable_size(tmp_path, rows):
    path = tmp_path / "bars.png"
    plot_bars(rows, ["acc", "per.hue", "other"], path, by="label", title="attributes")
    data = path.read_bytes()
    width, height = (int.from_bytes(data[start : start + 4]) for start in (16, 20))
    assert data.startswith(b"\x89PNG") and width >= 1000 and height >= 600


def test_the_bars_whiskers_and_dots_are_the_means_intervals_and_seeds(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *path, **options: drawn.append(self))
    plot_bars(ROWS, ["acc", "other"], tmp_path / "x.png")
    axes = drawn[0].axes[0]
    acc, other = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert acc == pytest.approx([statistics.mean(values) for _, values in ACCURACY.values()])
    assert len(other) == 2 and len(axes.collections) == len(axes.lines) == 8
    assert sorted(axes.collections[1].get_offsets()[:, 0]) == pytest.approx(sorted(ACCURACY["lora"][1]))
    low, high = axes.lines[1].get_xdata()
    assert low < statistics.mean(ACCURACY["lora"][1]) < high and math.isfinite(low)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(ACCURACY)
    assert axes.get_xlim()[0] == 0
