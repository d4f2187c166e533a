"""The examples of the docstrings run, and the tables in docs/papers hold the numbers of the rows."""

import dataclasses
import re
from pathlib import Path

import pytest

from metalora.bench.store import RowStore
from metalora.config import from_dict, read_yaml
from metalora_papers.comparison import load_comparison
from metalora_papers.config import TableConfig, TextTableConfig
from metalora_papers.learner.config import LearnerTableConfig
from metalora_papers.metalora.continuation_config import ContinuationTableConfig
from metalora_papers.metalora.table import ImageComparison
from metalora_papers.new_task.page import section, with_section
from metalora_papers.rows import read_rows
from metalora_papers.tenslora.config import ImageTableConfig
from support.docstrings import run_examples

PAPERS = Path(__file__).parents[1]
DOCS = PAPERS.parent / "docs" / "papers"
RESULTS = PAPERS.parent / "docs" / "results.md"
SOURCE = PAPERS / "src"
MODULES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted(SOURCE.glob("metalora_papers/**/*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module):
    run_examples(module)


@pytest.mark.parametrize("name", ["index", "learners", "metalora", "metatt", "tenslora"])
def test_a_page_links_to_files_that_exist(name):
    page = DOCS / f"{name}.md"
    links = re.findall(r"\]\(((?:\.\./)*[\w./-]+\.(?:md|jsonl|yaml))", page.read_text())
    recipes = re.findall(r"papers/(recipes/\S+?\.yaml)", page.read_text())
    assert links and recipes
    for target in [*(page.parent / link for link in links), *(PAPERS / recipe for recipe in recipes)]:
        assert target.exists(), target


TABLES = {
    ("attributes", "fashion-mnist", "resnet"),
    ("attributes", "fashion-mnist", "mixer"),
    ("attributes", "mnist-5k", "resnet"),
    ("cue", "fashion-mnist", "resnet"),
    ("cue", "fashion-mnist", "mixer"),
    ("cue", "mnist-5k", "resnet"),
    ("shift", "fashion-mnist", "resnet"),
    ("natural", "fashion-mnist", "resnet"),
}


@pytest.mark.parametrize("suite, data, backbone", sorted(TABLES))
def test_the_numbers_of_the_page_are_those_of_the_rows(suite, data, backbone):
    comparison = ImageComparison("metalora", TableConfig(suite=suite, data=data, backbone=backbone))
    rows = RowStore(PAPERS / "results" / f"{suite}.jsonl").rows()
    found = comparison.report(comparison.rows_of(rows))
    text = (DOCS / "metalora.md").read_text()
    for cells in found.tables[0].cells:
        line = " | ".join(cells[2:4])  # the two metrics that are compared
        assert f"| {line} |" in text, cells


def report_of(name, table, file):
    comparison = load_comparison(name, table)
    return comparison.report(comparison.rows_of(RowStore(PAPERS / "results" / file).rows()))


def test_table_one_is_that_of_the_rows_in_the_results_and_in_the_page():
    found = report_of("metalora-1", TableConfig(data="fashion-mnist"), "attributes.jsonl").tables[0]
    lines = [" | ".join(cells[1:]) for cells in found.cells if not cells[0].startswith("MoE")]
    assert len(lines) == 6
    for path in (RESULTS, DOCS / "metalora.md"):
        text = path.read_text()
        assert [line for line in lines if f"| {line} |" not in text] == []


def test_the_continuations_are_those_of_the_rows_in_the_page():
    found = report_of("metalora-continuation", ContinuationTableConfig(), "continuation.jsonl").tables[0]
    page = (DOCS / "metalora.md").read_text().replace("**", "")
    lines = [" | ".join(cells[2:]) for cells in found.cells]
    assert len(lines) == 4 and [line for line in lines if f"| {line} |" not in page] == []


@pytest.mark.parametrize(
    "paper, name, file, count",
    [
        ("metatt", "metatt-2", "metatt-baselines", 11),
        ("metatt", "metatt-2", "metatt-fig12", 2),
        ("metatt", "metatt-fig11", "metatt-fig11", 3),
        ("metatt", "metatt-4", "metatt-futures", 7),
        pytest.param("tenslora", "tenslora", "tenslora-forms", 8, marks=pytest.mark.slow),  # ranks of three spectra
    ],
)
def test_the_baselines_are_those_of_the_rows_in_the_page(paper, name, file, count):
    recipe = from_dict(TextTableConfig, read_yaml(PAPERS / "recipes" / paper / f"{file}.yaml"))
    found = report_of(name, recipe, f"{file}.jsonl").tables[0]
    page = (DOCS / f"{paper}.md").read_text().replace("**", "")
    columns = [found.columns.index(column) for column in ("method", "mean", "parameters")]
    lines = [" | ".join(cells[column] for column in columns) for cells in found.cells]
    assert len(lines) == count and [line for line in lines if f"| {line} |" not in page] == []


@pytest.mark.parametrize("name, curves", [("metatt-fig4", 0), ("metatt-fig7", 3), ("metatt-fig9", 2)])
def test_the_starts_rates_and_ranks_are_those_of_the_rows_in_the_page(name, curves):
    recipe = from_dict(TextTableConfig, read_yaml(PAPERS / "recipes" / "metatt" / "metatt-figures.yaml"))
    recipe = dataclasses.replace(recipe, lr_grid=() if name == "metatt-fig9" else recipe.lr_grid)
    found = report_of(name, recipe, "metatt-figures.jsonl").tables[0]
    page = (DOCS / "metatt.md").read_text()
    mean = found.columns.index("mean")
    lines: dict[str, list[str]] = {}
    for cells in found.cells:  # a start has a line of its own, a rate or a rank is a cell of its method
        lines.setdefault(re.split(", lr |, rank ", cells[0])[0], []).append(cells[mean])
    assert len(lines) == (curves or 5)
    assert [line for key, means in lines.items() if (line := " | ".join([key, *means])) not in page] == []


def test_the_constructions_on_pictures_are_those_of_the_rows_in_the_page():
    recipe = from_dict(ImageTableConfig, read_yaml(PAPERS / "recipes" / "tenslora" / "tenslora-vision.yaml"))
    found = report_of("tenslora-vision", recipe, "tenslora-vision.jsonl")
    page = (DOCS / "tenslora.md").read_text()
    against_lora = {pair.treatment: pair for pair in found.comparisons if pair.metric == "accuracy"}
    sizes = found.tables[0].columns.index("parameters")
    assert len(found.tables[0].cells) == 9
    for cells in found.tables[0].cells:
        pair = against_lora.get(cells[0])
        compared = "| | |" if pair is None else f"| {100 * pair.difference:+.1f} | {pair.p_holm:.2g} |"
        assert f"| {cells[0].split(',')[0]} | {cells[2]} {compared} {cells[sizes]} |" in page


def learner_table(suite, **settings):
    recipe = from_dict(LearnerTableConfig, read_yaml(PAPERS / "recipes" / "learner" / f"{suite}.yaml"))
    name = f"learner-{suite}"
    return report_of(name, dataclasses.replace(recipe, **settings), f"{name}.jsonl").tables[0]


def test_the_emoji_are_those_of_the_rows_in_the_readme_the_results_and_the_page():
    found = learner_table("emoji", methods=("original", "lora"))
    page = (DOCS / "learners.md").read_text()
    readme, results = (path.read_text().replace("**", "") for path in (PAPERS.parent / "README.md", RESULTS))
    trained, never = found.columns.index("trained"), found.columns.index("never trained")
    for cells in found.cells:
        in_page = [cell.split(" ")[0] for cell in cells[2:trained]]
        means = f"| {cells[trained]} | {cells[never]} |"
        if cells[0] not in ("logistic regression, last layer", "RBF-SVM, last layer"):
            assert " | ".join(in_page) in page and means in page.replace("**", ""), cells
        if cells[0] in ("k-NN, last layer", "LDA, all stages", "logistic regression, all stages", "lora"):
            assert means in readme and means in results, cells


def test_the_texts_are_those_of_the_rows_in_the_page():
    found = learner_table("texts", methods=("original", "lora"))
    page = (DOCS / "learners.md").read_text().replace("**", "")
    never = found.columns.index("never trained")
    lines = {
        cells[0]: " | ".join([*(cell.split(" ")[0] for cell in cells[2 : never - 1]), *cells[never - 1 : never + 1]])
        for cells in found.cells
    }
    shown = [method for method, line in lines.items() if f"| {line} |" in page]
    assert len(shown) == 7 and "lora" in shown


ATTRIBUTES = [{}, {"backbone": "mixer"}, {"data": "mnist-5k", "seeds": (0, 1, 2)}]


@pytest.mark.parametrize("settings", ATTRIBUTES, ids=["fashion resnet", "fashion mixer", "mnist resnet"])
def test_the_attributes_are_those_of_the_rows_in_the_page(settings):
    found = learner_table("attributes", methods=("original", "lora"), **settings)
    page = (DOCS / "learners.md").read_text().replace("**", "")
    means = slice(found.columns.index("trained"), found.columns.index("unseen classes") + 1)
    shown = [cells[0] for cells in found.cells if f"| {' | '.join(cells[means])} |" in page]
    assert len(shown) == 7 and "lora" in shown


MEANS = ("seeds", "trained", "never trained")


@pytest.mark.parametrize(
    "suite, names, count", [("attributes", (*MEANS, "unseen classes"), 8), ("emoji", (*MEANS, "parameters"), 4)]
)
def test_the_generated_adapters_are_those_of_the_rows_in_the_page(suite, names, count):
    found = learner_table(suite)
    page = (DOCS / "learners.md").read_text().replace("**", "")
    columns = [found.columns.index(name) for name in names]
    lines = {cells[0]: " | ".join(cells[column] for column in columns) for cells in found.cells}
    shown = [method for method, line in lines.items() if f"| {line} |" in page]
    assert [method for method in lines if method.startswith(("metalora", "film", "lora, one"))] == shown[1:]
    assert len(shown) == count and shown[0] == "lora"


def test_the_time_to_a_new_task_is_that_of_the_rows_in_the_page():
    page = (DOCS.parent / "performance.md").read_text()
    rows = PAPERS / "results" / "new-task.jsonl"
    text = section(read_rows(rows)) if rows.is_file() else "Not measured yet."
    assert page == with_section(page, text)
