"""Table 19 of the MetaTT paper, cell by cell."""

import json

import pytest

from metalora_papers.metatt.complexity import complexity_table
from support.command import papers_command

MODELS = ("roberta-base", "roberta-large", "llama-2-7b", "llama-2-13b")
PRINTED = {16: (186, 169, 2039, 2553), 64: (11, 16, 127, 159), 256: (2, 3, 16, 20)}
# The same cells with one decimal, by hand: at rank 256 of roberta-base L r = 3072 > D = 768, so eq. 9 is
# 2 768^2 3072 + 2 3072 512^2 + 2 768 512^2 = 5.637e9, and eq. 8 is 12 2 768^3 = 1.0872e10.
DECIMALS = {16: "185.6 169.1 2039.0 2552.8", 64: "11.4 15.6 127.3 159.4", 256: "1.9 3.1 15.6 19.7"}


@pytest.mark.parametrize("rank", PRINTED)
def test_a_line_is_the_printed_one(rank):
    [line] = [line for line in complexity_table() if line["rank"] == rank]
    assert tuple(round(line[model]) for model in MODELS) == PRINTED[rank]


def test_the_page_has_all_twelve_cells(tmp_path):
    path = tmp_path / "page.html"
    code, out, _ = papers_command("table", "metatt-19", "--html", path)
    page = path.read_text()
    assert out.splitlines()[-1] == f"page: {path}"
    assert json.loads(papers_command("table", "metatt-19", "--html", path, "--json")[1]) == complexity_table()
    assert code == 0 and "185.6" in out and "Table 19 of MetaTT" in page and "paired comparison" not in page
    for row in DECIMALS.values():
        assert all(f">{cell}<" in page for cell in row.split())


def test_the_command_prints_all_twelve_cells():
    code, out, _ = papers_command("table", "metatt-19")
    cells = [line.split("\t") for line in out.splitlines()[2:]]  # after the title and the names of the columns
    assert code == 0
    assert json.loads(papers_command("table", "metatt-19", "--json")[1]) == complexity_table()
    assert {int(rank): " ".join(row) for rank, *row in cells} == DECIMALS
