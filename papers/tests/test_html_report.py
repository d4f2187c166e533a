"""The page of a comparison: its tables, what they are sorted by, its verdict, its curves and its settings."""

import math
from pathlib import Path

import pytest

from metalora_papers.html_report import parse_cell, verdict, write_html
from metalora_papers.report import PairedComparison, Report, Table, compare_methods, comparison_table, summary_table

EVIL = "<script>"


def row(method, seed, accuracy, history=()):
    config = {"method": method, "seed": seed, "adapter": {"rank": 4, "seed": seed}}
    results = {"accuracy": accuracy, "num_params": 10, "history": list(history)}
    return {"key": f"{method}{seed}", "suite": "s", "seed": seed, "commit": "abc", "config": config, "results": results}


def points(*losses):
    return [{"step": 10 * number, "loss": loss, "accuracy": {"a": 0.5}} for number, loss in enumerate(losses, 1)]


ROWS = [
    *(row("lora", seed, 0.5 + 0.01 * seed, points(2.0, 1.0 + seed)) for seed in range(3)),
    *(row(EVIL, seed, 0.7 + 0.012 * seed, points(2.0, 0.5)) for seed in range(3)),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of six rows as text."""
    pairs = compare_methods(ROWS, metric="accuracy", treatment_methods=(EVIL,), baseline_methods=("lora",))
    table = summary_table(ROWS, ("accuracy", "num_params"), title="Scores", percent=True, note="A note.")
    report = Report([table, comparison_table(pairs, title="Pairs")], pairs)
    path = tmp_path_factory.mktemp("page") / "table.html"
    write_html(report, ROWS, [], path, "a table")
    return path.read_text()


def test_the_page_has_the_cells_of_the_tables_and_their_numbers(page):
    table = summary_table(ROWS, ("accuracy",), percent=True)
    assert all(cell in page for line in table.cells for cell in line if cell != EVIL)
    assert '<th scope="row">lora</th>' in page and 'data-value="51"' in page and "A note." in page
    assert "https" not in page and page.count("<script>") == 1 and "&lt;script&gt;" in page


def test_the_curves_are_means_over_seeds(page):
    assert "lora: 2 at 20" in page  # of 1, 2 and 3
    assert "&lt;script&gt;: 0.5 at 20" in page
    assert 'aria-label="loss over steps"' in page and 'aria-label="accuracy over steps"' in page


def test_the_settings_name_what_differs(page):
    assert "<td>lora | &lt;script&gt;</td>" in page and "<td>0 | 1 | 2</td>" in page and "<td>abc</td>" in page


def test_the_verdict_counts_what_holds_after_the_correction(page):
    assert "1 of 1 paired comparisons differ (t-test, p &lt; 0.05 after Holm&#x27;s correction)" in page
    assert "&lt;script&gt; is above lora by 0.202 in accuracy." in page
    pair = PairedComparison("loss", "a", "b", 1.0, 2.0, -1.0, -1.1, -0.9, 0.01, 0.2, (0, 1, 2))
    assert "0 of 1" in verdict([pair])


@pytest.mark.parametrize(
    "cell, expected",
    [
        ("36,864", (36864, math.nan, math.nan)),
        ("0.364 [0.249, 0.5]", (0.364, 0.249, 0.5)),
        ("+0.010 [-0.002, +0.020]", (0.010, -0.002, 0.020)),
        ("79.6 ±2.2*", (79.6, 77.4, 81.8)),
        ("1e-05", (1e-05, math.nan, math.nan)),
        ("–", (math.nan, math.nan, math.nan)),
    ],
)
def test_a_cell_is_sorted_by_its_number(cell, expected):
    interval = parse_cell(cell)
    assert (interval.mean, interval.low, interval.high) == pytest.approx(expected, nan_ok=True)
    assert interval.written == cell


@pytest.mark.parametrize("cell", ["lora", "0.8, 0.7", "2-5", "k5"])
def test_another_cell_is_text(cell):
    assert parse_cell(cell) is None


def test_pictures_beyond_the_size_of_a_page_are_named(tmp_path):
    for name in ("first", "second"):
        (tmp_path / f"{name}.png").write_bytes(b"0" * 700_000)
    figures = [tmp_path / "first.png", tmp_path / "second.png"]
    write_html(Report([Table("t", ("a",), (("1",),))]), ROWS, figures, tmp_path / "a.html", "t")
    text = Path(tmp_path / "a.html").read_text()
    assert text.count("<img") == 1 and "second.png is not shown" in text and len(text) < 2_000_000
