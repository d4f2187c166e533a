"""The GPU bench as a dry run on the CPU: its rows, its time budget and its errors."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metalora.bench.gpu import graphed, launches, laws, many_tenants, sections, supervisor
from metalora.bench.gpu.__main__ import MINUTES, main
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.measure import measure
from metalora.bench.gpu.run import closing_line, has_failed, run_section, summary
from metalora.bench.gpu.section import Section
from metalora.bench.gpu.supervisor import Supervisor
from metalora.bench.gpu.worker import Task
from metalora.bench.store import RowStore
from support import gpu_sections
from support.fresh_process import SERVER, run_fresh

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a dry run is for a machine without a card")


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this PyTorch has no Triton")


def rows_of(name):
    """The rows of the sections whose name begins so, which run in this process."""
    chosen = [section for section in sections.sections(dry_run=True) if section.name.startswith(name)]
    return [run_section(section, Budget(400), dry_run=True) for section in chosen]


# ---- the sections --------------------------------------------------------------------------------------------------
def test_a_dry_run_checks_the_laws():
    rows = rows_of("laws")[:3]
    assert [row["config"]["section"] for row in rows] == ["laws float32", "laws bfloat16", "laws float16"]
    for row in rows:
        assert row["suite"] == "gpu" and row["config"]["dry_run"] is True and row["environment"]["device"] is None
        assert not has_failed(row)
        assert row["results"]["failed"] == [] and len(row["results"]["cases"]) == 4


TIMED = {
    "roberta-base bfloat16": ["peft: lora", "peft: vera", "lora", "vera", "metatt-4d", "metatt-5d"],
    "resnet50 float32": ["peft: lora", "lora", "metalora-cp"],
    "llama-1b bfloat16": ["peft: lora", "lora", "metatt-4d"],
}


@pytest.mark.parametrize("name, adapters", TIMED.items(), ids=TIMED)
def test_a_section_times_each_case_next_to_the_frozen_model(name, adapters):
    pytest.importorskip("transformers"), pytest.importorskip("peft"), pytest.importorskip("timm")
    (row,) = rows_of(name)
    cases = {case["case"]: case for case in row["results"]["cases"]}
    assert list(cases) == ["frozen model", *adapters]
    for case in cases.values():
        assert case["forward_seconds"] > 0 and case["backward_seconds"] > 0
        assert case["step_seconds"] >= case["forward_seconds"] + case["backward_seconds"]
        assert case["step_peak_bytes"] is None and (case["num_params"] > 0) == (case["case"] != "frozen model")
    assert cases["lora"]["num_params"] == cases["peft: lora"]["num_params"] and cases["lora"]["rank"] == 2
    assert cases["lora"]["kernels"] == ["Fused"] and "kernels" not in cases["peft: lora"]
    decoded = {case["case"] for case in row["results"].get("decode", [])}
    assert decoded == (set(cases) if name.startswith("llama") else set())
    for case in row["results"].get("decode", []):
        assert case["token_seconds"] > 0 and case["token_of_64_seconds"] > 0


def test_launches_are_counted_for_each_case():
    (row,) = rows_of("launches")
    cases = {case["case"]: case for case in row["results"]["cases"]}
    own = ["lora", "metatt-4d", "lora, triton", "metatt-4d, triton"]
    assert list(cases) == ["frozen model", "peft: lora", *own, "metalora-cp"]
    assert row["results"]["targets"] == 4
    counted = [case for name, case in cases.items() if not name.endswith("triton")]
    assert all(case["forward_launches"] is None and case["backward_waits"] == [] for case in counted)


TRITON_RUN = """
import json
from metalora.bench.gpu.budget import Budget
from metalora.bench.gpu.run import run_section
from metalora.bench.gpu.sections import sections

names = ["laws triton bfloat16", "kernels bfloat16", "small batch roberta-base bfloat16"]
names.append("serving roberta-base bfloat16")
chosen = [section for section in sections(True) if section.name in names]
print(json.dumps([run_section(section, Budget(300), True)["results"] for section in chosen]))
"""


@pytest.mark.slow
@needs_triton
def test_the_sections_of_triton_kernels_run_in_the_interpreter():
    pytest.importorskip("peft")
    done = run_fresh(TRITON_RUN, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    checked, steps, alone, serving = json.loads(done.stdout)
    assert serving["kernels"] == ["Triton"] and 0 < serving["error_against_torch"] < 1e-2
    assert checked["failed"] == [] and len(checked["cases"]) == 2
    kernels = {case["case"]: case.get("kernels") for case in steps["cases"]}
    assert kernels["lora, triton"] == kernels["metatt-4d, triton"] == ["Triton"] and kernels["lora"] == ["Fused"]
    assert len(alone["cases"]) == 8 and all(case["error_against_torch"] < 1e-2 for case in alone["cases"])


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="this PyTorch has Triton")
def test_without_triton_its_cases_say_so_and_the_others_are_timed():
    (row,) = rows_of("small batch roberta-base bfloat16")
    errors = {case["case"]: case["error"] for case in row["results"]["cases"] if "error" in case}
    assert set(errors) == {"lora, triton", "metatt-4d, triton"} and "triton is not installed" in errors["lora, triton"]


@pytest.mark.slow
@needs_triton
def test_every_section_runs_in_the_dry_run_of_the_command(tmp_path):
    pytest.importorskip("transformers"), pytest.importorskip("peft"), pytest.importorskip("timm")
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "metalora.bench.gpu", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    rows = RowStore(out).rows()
    assert [row["config"]["section"] for row in rows] == [part.name for part in sections.sections(dry_run=True)]
    for row in rows:
        results = row["results"]
        assert "skipped" not in results and not has_failed(row), summary(row)
        assert not [case for case in results["cases"] + results.get("decode", []) if "error" in case], summary(row)
    assert done.stdout.splitlines()[-1].endswith("none was dropped; none failed")


@pytest.mark.slow
@needs_triton
def test_compiled_cases_have_one_graph_and_say_which_were_not_recorded():
    pytest.importorskip("peft")
    default, with_graphs = rows_of("compiled")
    assert [row["config"]["compile"] for row in (default, with_graphs)] == ["default", "reduce-overhead"]
    for row, skips in ((default, 0), (with_graphs, 1)):  # no graph of a CPU can be recorded
        cases = row["results"]["cases"]
        assert [case["case"] for case in cases] == ["peft: lora", "lora", "frozen model"]
        assert {(case["graph_breaks"], case["cudagraph_skips"]) for case in cases} == {(0, skips)}


def test_a_wait_for_the_card_is_named_by_its_line():
    def run():
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    (place,) = launches.waits(run)
    assert place.startswith("bench/test_gpu.py:") and place.partition(":")[2].isdigit()


ALWAYS = ["frozen model", "one condition", "a condition for each row", "the same condition for each row"]


@pytest.mark.parametrize("name", ["serving roberta-base bfloat16", "serving resnet50 float32"])
def test_a_batch_of_tenants_is_timed_beside_other_ways(name):
    (row,) = rows_of(name)
    results, with_peers = row["results"], name.startswith("serving roberta")
    assert results["tenants"] == 2 and results["change"] > 1e-4 and not has_failed(row)
    timed = [case["case"] for case in results["cases"] if case["forward_seconds"] > 0]
    assert timed == ALWAYS + (["a loop over the conditions", "peft: a LoRA for each row"] if with_peers else [])
    assert not with_peers or results["error_against_loop"] < 2e-2


@pytest.mark.parametrize("setup", [sections.small_batch("float32"), sections.resnet50()], ids=["texts", "pictures"])
def test_a_batch_of_tenants_gives_what_a_loop_gives(setup):
    section = many_tenants.tenants_section("serving", 60, sections.tiny(setup))
    results = section.run(Budget(60))
    assert results["error_against_loop"] < 1e-5 < results["change"]


def test_what_finds_no_time_beside_the_tenants_costs_no_other_number(monkeypatch):
    def never(*arguments):
        raise OutOfTime("the time budget is used up")

    monkeypatch.setattr(many_tenants, "_by_peft", never)
    section = many_tenants.tenants_section("serving", 60, sections.tiny(sections.small_batch("float32")))
    cases = {case["case"]: case for case in section.run(Budget(60))["cases"]}
    assert all(cases[name]["forward_seconds"] > 0 for name in ALWAYS)
    assert cases["peft: a LoRA for each row"]["error"].startswith("OutOfTime")


def test_steps_and_inference_run_as_they_would_be_captured():
    steps, *serving = rows_of("graphed")
    assert [case["case"] for case in steps["results"]["cases"][:4]] == [
        "frozen model", "peft: lora", "lora", "metatt-4d",
    ]  # fmt: skip
    assert len(serving) == 2
    for row in serving:
        assert set(row["results"]["error_against_plain"].values()) == {0.0}


class ReadsOfNumbers(TorchDispatchMode):
    """Collects the operations that read a number of a tensor, for which a capture on a card cannot wait."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if any(word in str(function) for word in ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select")):
            self.found.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", ["frozen model", "peft: lora", "lora", "metatt-4d"])
def test_a_captured_step_reads_no_number(name):
    setup = sections.tiny(sections.small_batch("bfloat16"))
    base, inputs = graphed.inputs_for_capture(setup)
    case = graphed.build_adapted(setup, base, inputs, name)
    case.model.train()
    with ReadsOfNumbers() as reads:
        torch.autograd.backward(case.loss())
    assert not reads.found


@pytest.mark.parametrize("setup", [sections.small_batch("bfloat16"), sections.resnet50()], ids=["texts", "pictures"])
def test_captured_inference_for_tenants_reads_no_number(setup):
    setup = sections.tiny(setup)
    base, inputs = graphed.inputs_for_capture(setup)
    model, condition = many_tenants.adapted_for_tenants(setup, base, 2, 2)
    for run in many_tenants.runs_by_kernels({"": model}, inputs, condition).values():
        with ReadsOfNumbers() as reads:
            run()
        assert not reads.found


def test_the_real_run_has_the_published_ranks_and_fits_into_eight_minutes():
    real = {section.name: section for section in sections.sections(dry_run=False)}
    base = real["roberta-base float32"].config["ranks"]
    large = real["roberta-large float32"].config["ranks"]
    assert (base["lora"], base["vera"], base["metatt-4d"], base["metatt-5d"]) == (8, 1024, 24, 64)
    assert (large["lora"], large["vera"], large["metatt-4d"], large["metatt-5d"]) == (8, 256, 32, 64)
    start = 25  # seconds for the imports of two processes
    assert start + sum(section.seconds for section in real.values()) <= MINUTES * 60
    assert MINUTES * 60 + supervisor.LAST_SECONDS < 480


def test_the_sections_of_a_dry_run_are_those_of_a_real_one():
    real, tiny = sections.sections(dry_run=False), sections.sections(dry_run=True)
    assert [(part.name, part.seconds) for part in real] == [(part.name, part.seconds) for part in tiny]


# ---- budgets and errors --------------------------------------------------------------------------------------------
def never_ends(budget):
    while True:
        time.sleep(0.01)


def fails(budget):
    raise RuntimeError("the first line\nthe second line")


def test_a_section_that_fails_or_never_ends_becomes_a_row_that_says_so(monkeypatch):
    enforced = Budget.enforced
    monkeypatch.setattr(Budget, "enforced", lambda self: enforced(self, grace=0.1))
    parts = [
        Section("fails", 10, {}, fails),
        Section("never ends", 0.1, {}, never_ends),
        Section("works", 10, {}, lambda budget: {"cases": []}),
    ]
    failed, endless, works = (run_section(part, Budget(60), dry_run=True)["results"] for part in parts)
    assert failed == {"error": "RuntimeError: the first line"} and works == {"cases": []}
    assert endless["skipped"].startswith("a measurement ran far beyond the time budget")


def test_sections_are_skipped_if_no_time_is_left():
    part = Section("works", 10, {}, lambda budget: {"cases": []})
    row = run_section(part, Budget(1), dry_run=True)
    assert row["results"] == {"skipped": "the time budget of the run is used up"}


def test_a_case_that_fails_does_not_lose_the_others():
    def broken():
        raise ValueError("no kernel")

    result = measure({"good": lambda: {"step": 2.0}, "bad": broken}, 3, Budget(60))
    good, bad = result.rows(reference="good")
    assert good["rounds"] == 3 and good["step"] == 1.0 and bad == {"case": "bad", "error": "ValueError: no kernel"}
    with pytest.raises(OutOfTime, match="time budget is used up"):
        measure({"good": lambda: {"step": 2.0}}, 3, Budget(0))


def test_an_interrupted_round_does_not_count_and_costs_no_other():
    calls = []

    def interrupted():
        calls.append(1)
        if len(calls) == 5:
            raise OutOfTime("too long")
        return {"step": 1.0}

    rows = measure({"first": lambda: {"step": 2.0}, "second": interrupted}, 9, Budget(60)).rows(reference="first")
    assert [(row["rounds"], row["step"]) for row in rows] == [(2, 1.0), (2, 0.5)]  # the fifth call is the third round


def test_no_round_begins_that_would_not_fit(monkeypatch):
    budget = Budget(60)
    monkeypatch.setattr(Budget, "remaining", property(lambda self: 0.01))
    result = measure({"slow": lambda: time.sleep(0.02) or {"step": 1.0}}, 9, budget)
    assert [row["rounds"] for row in result.rows()] == [1]


def test_cases_that_are_measured_apart_are_compared_over_the_rounds_that_both_have():
    result = measure({"frozen model": lambda: {"step": 2.0}}, 3, Budget(60))
    result.seconds |= measure({"other": lambda: {"step": 4.0}}, 2, Budget(60)).seconds
    assert [row["step"] for row in result.rows()] == [1.0, 2.0]


# ---- the process of the sections -------------------------------------------------------------------------------------
def supervised(tmp_path, make_sections=gpu_sections.sections, seconds=60, kind=Supervisor):
    """The rows of made-up sections and the lines for the terminal."""
    names, lines = [section.name for section in gpu_sections.sections(True)], []
    task = Task(make_sections, True, names, tmp_path / "rows.jsonl", time.monotonic() + seconds)
    return kind(task, SERVER, lines.append).run(), lines


def test_a_section_that_ends_its_process_or_never_returns_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE_SECONDS", 1.0)
    rows, lines = supervised(tmp_path)
    first, died, hung, no_number, last = (row["results"] for row in rows)
    assert first == last == {"cases": [{"case": "one"}]}
    assert died == {"error": "the process that ran it ended"}
    assert hung == {"error": "it ran far beyond its time and was ended"} and rows[2]["time"]["seconds"] < 10
    assert no_number["cases"] == [{"case": "one", "seconds": [1.0, None]}]
    assert no_number["not_finite"] == ["results.cases[0].seconds[1]"]
    assert RowStore(tmp_path / "rows.jsonl").rows() == rows
    assert lines[0] == "no CUDA card" and lines[-1].startswith("last: 1 cases in ")
    assert closing_line(rows) == "5 of 5 sections ran; none was dropped; failed: dies, hangs, no number"


def test_without_time_each_section_has_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "LAST_SECONDS", 120.0)  # for a machine that is busy when the process begins
    rows, _ = supervised(tmp_path, seconds=0)
    assert [row["results"] for row in rows] == 5 * [{"skipped": "the time budget of the run is used up"}]
    assert closing_line(rows) == "0 of 5 sections ran; dropped: first, dies, hangs, no number, last; none failed"


class TimeIsUp(Supervisor):
    """A supervisor whose time is up as soon as a section has ended."""

    def _add(self, row):
        super()._add(row)
        self.task = replace(self.task, deadline=time.monotonic() - supervisor.LAST_SECONDS)


def test_sections_that_are_not_reached_have_a_row_each(tmp_path):
    rows, _ = supervised(tmp_path, kind=TimeIsUp)
    first, *_, last = (row["results"] for row in rows)
    assert "cases" in first and last == {"skipped": "the time budget of the run is used up"} and len(rows) == 5
    assert RowStore(tmp_path / "rows.jsonl").rows() == rows and closing_line(rows).count(" last") == 1


def test_a_process_that_cannot_begin_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="no section could run: the process that ran it ended"):
        supervised(tmp_path, gpu_sections.broken)


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
    with pytest.raises(SystemExit):
        main(["--only", "lores"])
    assert "--only lores: no section begins so" in capsys.readouterr().err


BARE = """
import sys
sys.modules.update(dict.fromkeys(["tyro", "rich", "pytest", "scipy", "sklearn", "matplotlib", "datasets", "trl"]))
from metalora.bench.gpu.budget import Budget
from metalora.bench.gpu.run import has_failed, run_section
from metalora.bench.gpu.sections import sections
import metalora.bench.gpu.__main__, metalora.bench.gpu.supervisor
raise SystemExit(has_failed(run_section(sections(True)[0], Budget(60), True)))
"""


def test_it_needs_no_package_of_the_command_line():
    done = run_fresh(BARE)
    assert done.returncode == 0, done.stderr
