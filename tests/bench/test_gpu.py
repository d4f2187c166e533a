"""The GPU bench as a dry run on the CPU: its rows, its time budget and its errors."""

import time
import warnings

import pytest
import torch

from metalora.bench.gpu import launches, laws, sections
from metalora.bench.gpu.__main__ import MINUTES, main
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.measure import measure
from metalora.bench.gpu.run import run_sections
from metalora.bench.gpu.section import Section
from metalora.bench.store import RowStore
from support.fresh_process import run_fresh

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a dry run is for a machine without a card")


def rows_of(tmp_path, *arguments):
    code = main(["--out", str(tmp_path / "rows.jsonl"), *arguments])
    return code, RowStore(tmp_path / "rows.jsonl").rows()


# ---- the sections --------------------------------------------------------------------------------------------------
def test_a_dry_run_says_so_and_checks_the_laws(tmp_path, capsys):
    code, rows = rows_of(tmp_path, "--only", "laws")
    assert code == 0 and "dry run: tiny shapes" in capsys.readouterr().out.splitlines()[0]
    assert [row["config"]["section"] for row in rows] == ["laws float32", "laws bfloat16", "laws float16"]
    for row in rows:
        assert row["suite"] == "gpu" and row["config"]["dry_run"] is True and row["environment"]["device"] is None
        assert row["results"]["failed"] == [] and len(row["results"]["cases"]) == 4


TIMED = {
    "roberta-base bfloat16": ["peft: lora", "peft: vera", "lora", "vera", "metatt-4d", "metatt-5d"],
    "resnet50 float32": ["peft: lora", "lora", "metalora-cp"],
    "llama-1b bfloat16": ["peft: lora", "lora", "metatt-4d"],
}


@pytest.mark.parametrize("name, adapters", TIMED.items(), ids=TIMED)
def test_a_section_times_each_case_next_to_the_frozen_model(name, adapters, tmp_path):
    pytest.importorskip("transformers"), pytest.importorskip("peft"), pytest.importorskip("timm")
    code, (row,) = rows_of(tmp_path, "--only", name)
    cases = {case["case"]: case for case in row["results"]["cases"]}
    assert code == 0 and list(cases) == ["frozen model", *adapters]
    for case in cases.values():
        assert case["forward_seconds"] > 0 and case["backward_seconds"] > 0
        assert case["step_seconds"] >= case["forward_seconds"] + case["backward_seconds"]
        assert case["step_peak_bytes"] is None and (case["num_params"] > 0) == (case["case"] != "frozen model")
    assert cases["lora"]["num_params"] == cases["peft: lora"]["num_params"] and cases["lora"]["rank"] == 2
    decoded = {case["case"] for case in row["results"].get("decode", [])}
    assert decoded == (set(cases) if name.startswith("llama") else set())


def test_launches_are_counted_for_each_case(tmp_path):
    code, (row,) = rows_of(tmp_path, "--only", "launches")
    cases = {case["case"]: case for case in row["results"]["cases"]}
    assert code == 0 and list(cases) == ["frozen model", "peft: lora", "lora", "metatt-4d", "metalora-cp"]
    assert row["results"]["targets"] == 4
    assert all(case["forward_launches"] is None and case["backward_waits"] == [] for case in cases.values())


def test_the_section_of_triton_kernels_says_that_it_did_not_run(tmp_path):
    code, (row,) = rows_of(tmp_path, "--only", "triton")
    assert code == 0 and row["results"]["skipped"].startswith("not run: ")


@pytest.mark.slow
def test_the_section_of_triton_kernels_runs_in_the_interpreter(tmp_path):
    pytest.importorskip("triton"), pytest.importorskip("peft")
    code = TRITON_RUN.format(path=str(tmp_path / "rows.jsonl"))
    assert run_fresh(code, TRITON_INTERPRET="1").returncode == 0
    (row,) = RowStore(tmp_path / "rows.jsonl").rows()
    results = row["results"]
    assert results["failed"] == [] and len(results["laws"]) == 5 and results["serving"]["error_against_torch"] < 1e-2
    own = ["lora", "metatt-4d", "lora, triton", "metatt-4d, triton"]
    assert [case["case"] for case in results["cases"]] == ["frozen model", "peft: lora", *own]
    assert [case["case"] for case in results["serving"]["cases"]][1:3] == ["one condition", "one condition, triton"]


TRITON_RUN = """
from metalora.bench.gpu.__main__ import main
raise SystemExit(main(["--only", "triton", "--out", {path!r}]))
"""


def test_a_wait_for_the_card_is_named_by_its_line():
    def run():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    (place,) = launches.waits(run)
    assert place.startswith("bench/test_gpu.py:") and place.partition(":")[2].isdigit()


@pytest.mark.parametrize("name", ["serving roberta-base float32", "serving resnet50 float32"])
def test_a_batch_of_tenants_gives_what_a_loop_gives(name, tmp_path):
    code, (row,) = rows_of(tmp_path, "--only", name)
    results = row["results"]
    assert code == 0 and results["tenants"] == 2 and results["error_against_loop"] < 1e-5 < results["change"]
    timed = [case["case"] for case in results["cases"] if case["forward_seconds"] > 0]
    assert timed == [
        "frozen model",
        "one condition",
        "the same condition for each row",
        "a condition for each row",
        "a loop over the conditions",
        "peft: a LoRA for each row",
    ]


def test_steps_and_inference_run_as_they_would_be_captured(tmp_path):
    code, (steps, *serving) = rows_of(tmp_path, "--only", "graphed")
    assert code == 0 and len(steps["results"]["cases"]) == 4 and len(serving) == 2
    for row in serving:
        assert set(row["results"]["error_against_plain"].values()) == {0.0}


def test_the_real_run_has_the_published_ranks_and_fits_into_eight_minutes():
    real = {section.name: section for section in sections.sections(dry_run=False)}
    base = real["roberta-base float32"].config["ranks"]
    large = real["roberta-large float32"].config["ranks"]
    assert (base["lora"], base["vera"], base["metatt-4d"], base["metatt-5d"]) == (8, 1024, 24, 64)
    assert (large["lora"], large["vera"], large["metatt-4d"], large["metatt-5d"]) == (8, 256, 32, 64)
    assert MINUTES * 60 < 480 and all(section.seconds <= 100 for section in real.values())


# ---- budgets and errors --------------------------------------------------------------------------------------------
def never_ends(budget):
    while True:
        time.sleep(0.01)


def fails(budget):
    raise RuntimeError("the first line\nthe second line")


def test_a_section_that_fails_or_never_ends_does_not_lose_the_others(tmp_path, monkeypatch):
    enforced = Budget.enforced
    monkeypatch.setattr(Budget, "enforced", lambda self: enforced(self, grace=0.1))
    parts = [
        Section("fails", 10, {}, fails),
        Section("never ends", 0.1, {}, never_ends),
        Section("works", 10, {}, lambda budget: {"cases": []}),
    ]
    rows = run_sections(parts, RowStore(tmp_path / "rows.jsonl"), 60, dry_run=True)
    failed, endless, works = (row["results"] for row in rows)
    assert failed == {"error": "RuntimeError: the first line"} and works == {"cases": []}
    assert endless["skipped"].startswith("a measurement ran far beyond the time budget")


def test_sections_are_skipped_if_no_time_is_left(tmp_path):
    part = Section("works", 10, {}, lambda budget: {"cases": []})
    (row,) = run_sections([part], RowStore(tmp_path / "rows.jsonl"), 1, dry_run=True)
    assert row["results"] == {"skipped": "the time budget of the run is used up"}


def test_a_case_that_fails_does_not_lose_the_others():
    def broken():
        raise ValueError("no kernel")

    result = measure({"good": lambda: {"step": 2.0}, "bad": broken}, 3, Budget(60))
    good, bad = result.rows(reference="good")
    assert good["rounds"] == 3 and good["step"] == 1.0 and bad == {"case": "bad", "error": "ValueError: no kernel"}
    with pytest.raises(OutOfTime, match="time budget is used up"):
        measure({"good": lambda: {"step": 2.0}}, 3, Budget(0))


def test_a_wrong_output_fails_the_law(monkeypatch):
    case = laws.LawCase("lora", 4)
    assert laws.check_laws(case, "linear", torch.device("cpu"), torch.float32)["passed"]
    expected = laws._expected
    monkeypatch.setattr(laws, "_expected", lambda *arguments: 1.01 * expected(*arguments))
    assert not laws.check_laws(case, "linear", torch.device("cpu"), torch.float32)["passed"]


# ---- the machine ---------------------------------------------------------------------------------------------------
def test_rows_of_a_dry_run_are_kept_out_of_the_results(capsys):
    with pytest.raises(SystemExit):
        main(["--out", "papers/results/gpu.jsonl"])
    assert "do not belong among the results" in capsys.readouterr().err


BARE = """
import sys
sys.modules.update(dict.fromkeys(["tyro", "rich", "pytest", "scipy", "sklearn", "matplotlib", "datasets", "trl"]))
from metalora.bench.gpu.__main__ import MINUTES, main
raise SystemExit(main(["--only", "laws float32"]))
"""


def test_it_needs_no_package_of_the_command_line():
    done = run_fresh(BARE)
    assert done.returncode == 0, done.stderr
    assert "rows in" in done.stdout and "papers" not in done.stdout
