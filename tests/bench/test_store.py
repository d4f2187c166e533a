"""The table of result rows: shared by processes, cut off by crashes, claimed and released."""

import hashlib
import json
import math
import multiprocessing
import os
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from metalora.bench import store as rows_module
from metalora.bench.store import RowStore, commit, environment, make_row, run_key


def together(work, store, names):
    """Run work(store, name, barrier) in one process for each name, all at once; return what each of them returns."""
    context = multiprocessing.get_context("fork")  # without importing torch again
    barrier, queue = context.Barrier(len(names), timeout=60), context.Queue()
    processes = [
        context.Process(target=lambda name=name: queue.put((name, work(store, name, barrier)))) for name in names
    ]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=60) for _ in names)
    for process in processes:
        process.join(timeout=60)
    return results


def append_200(store, name, barrier):
    barrier.wait()
    for i in range(200):
        store.append({"key": f"{name}-{i}", "padding": name * (50 * i)})


def claim_60(store, name, barrier):
    barrier.wait()
    taken = [i for i in range(60) if store.claim(f"run{i}")]
    barrier.wait()  # whoever ends has its claims taken over
    return taken


def claim_4_and_stay(store, pipe):
    pipe.send([i for i in range(4) if store.claim(f"run{i}")])
    pipe.recv()


@pytest.fixture
def store(tmp_path):
    return RowStore(tmp_path / "table" / "rows.jsonl")


def test_rows_come_back_as_they_were(store):
    assert store.rows() == [] and store.keys() == set()
    rows = [{"key": "a", "x": [1, 2.5, None, True], "text": "ü\n|"}, {"key": "b", "nested": {"deep": {"er": 1e-300}}}]
    for row in rows:
        store.append(row)
    assert store.rows() == rows
    assert [json.loads(line) for line in store.path.read_text().splitlines()] == rows
    assert store.keys() == {"a", "b"} and store.done("a") and not store.done("c")


def test_two_processes_lose_nothing(store):
    together(append_200, store, "ab")
    rows = store.rows()
    assert sorted(row["key"] for row in rows) == sorted(f"{name}-{i}" for name in "ab" for i in range(200))
    for name in "ab":
        assert [row["key"] for row in rows if row["key"][0] == name] == [f"{name}-{i}" for i in range(200)]
    assert all(row["padding"] == row["key"][0] * (50 * int(row["key"][2:])) for row in rows)


def test_a_cut_off_last_line_is_reported_kept_and_repaired(store):
    store.append({"key": "a"})
    store.append({"key": "b", "results": {"x": 1}})
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-9])
    with pytest.warns(UserWarning, match="line 2: not a complete row"):
        assert [row["key"] for row in store.rows()] == ["a"]
    with pytest.warns(UserWarning, match="cut off; a new line"):
        store.append({"key": "c"})
    with pytest.warns(UserWarning, match="line 2"):
        assert store.keys() == {"a", "c"}
    assert store.path.read_bytes().startswith(whole[:-9] + b"\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.append({"key": "d"})


def test_a_whole_last_line_without_its_end_is_a_row(store):
    store.append({"key": "a"})
    store.path.write_bytes(store.path.read_bytes()[:-1])
    assert store.done("a")
    with pytest.warns(UserWarning, match="new line"):
        store.append({"key": "b"})
    assert [row["key"] for row in store.rows()] == ["a", "b"]


def test_a_failed_write_leaves_the_table_as_it_was(store, monkeypatch):
    store.append({"key": "a"})
    before = store.path.read_bytes()
    write = os.write

    def full_disk(descriptor, data):
        if len(data) < 10:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:10])

    monkeypatch.setattr(rows_module.os, "write", full_disk)
    with pytest.raises(ValueError, match=r"rows.jsonl: could not be written \(No space left on device\)"):
        store.append({"key": "b" * 42})
    assert store.path.read_bytes() == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"results": {"acc": [0.5, math.nan]}}, r"row\.results\.acc\[1\] is nan"),
        ({"results": {"acc": -math.inf}}, r"row\.results\.acc is -inf"),
        ({"config": {1: "x"}}, r"row\.config has the name 1"),
        ({"results": {"acc": torch.tensor(0.5)}}, r"row\.results\.acc is a Tensor"),
        ({"results": {"acc": np.float32(0.5)}}, r"row\.results\.acc is a float32"),
        ({"config": {"path": Path("x")}}, r"row\.config\.path is a "),
    ],
)
def test_what_json_would_change_is_refused_and_nothing_written(store, row, message):
    with pytest.raises(ValueError, match=message):
        store.append(row)
    assert store.rows() == []


def test_a_key_names_a_configuration():
    config = {"method": "cp", "rank": 16, "rate": 0.005, "seed": 0, "names": ["a", "b"], "none": None}
    text = '{"method":"cp","names":["a","b"],"none":null,"rank":16,"rate":0.005,"seed":0}'
    assert run_key(config) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert run_key(dict(reversed(config.items()))) == run_key({**config, "names": ("a", "b")}) == run_key(config)
    others = [{**config, "seed": 1}, {**config, "names": ["b", "a"]}, {**config, "none": 0}]
    assert len({run_key(changed) for changed in [config, *others]}) == 4
    with pytest.raises(ValueError, match=r"config\.rate is nan"):
        run_key({"rate": math.nan})


def test_a_claim_excludes_until_it_is_released(store):
    assert not store.is_claimed("k")
    assert store.claim("k") and not store.claim("k") and not RowStore(store.path).claim("k")
    assert store.claim("other") and store.is_claimed("k")
    store.release("k")
    store.release("k")
    assert not store.is_claimed("k") and store.claim("k")


def test_a_finished_run_cannot_be_claimed(store):
    assert store.claim("k")
    store.append({"key": "k"})
    store.release("k")
    assert not store.claim("k")
    assert not list(store.path.with_name("rows.jsonl.claims").iterdir())


@pytest.mark.parametrize("key", ["", "a/b", "../x", ".lock", "a b"])
def test_a_key_must_be_a_file_name(store, key):
    with pytest.raises(ValueError, match="must be made of"):
        store.claim(key)


def test_two_processes_share_the_runs_without_overlap(store):
    taken = together(claim_60, store, "ab")
    assert sorted(taken["a"] + taken["b"]) == list(range(60))


def test_claims_of_a_dead_process_are_taken_over_and_those_of_a_live_one_are_not(store):
    context = multiprocessing.get_context("fork")  # without importing torch again
    pipe, end = context.Pipe()
    process = context.Process(target=claim_4_and_stay, args=(store, end), daemon=True)
    process.start()
    assert pipe.recv() == [0, 1, 2, 3]
    assert not store.claim("run3")
    with pytest.raises(ValueError, match=f"claimed by process {process.pid} on"):
        store.release("run3")
    process.kill()
    if Path("/proc").exists():
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.warns(UserWarning, match="stale claim"):  # a zombie, nobody has waited for it
            assert store.claim("run2")
    process.join()
    with pytest.warns(UserWarning, match="stale claim"):
        assert store.claim("run3")
    assert not store.claim("run3")


def test_the_second_row_of_a_run_is_not_added_and_its_files_stay(store):
    published = []
    assert store.append_first({"key": "k", "results": {"x": 1}}, lambda: published.append("first"))
    assert not store.append_first({"key": "k", "results": {"x": 2}}, lambda: published.append("second"))
    assert store.append_first({"key": "other"}, lambda: published.append("other"))
    assert published == ["first", "other"]
    assert store.rows() == [{"key": "k", "results": {"x": 1}}, {"key": "other"}]


def append_the_same_60(store, name, barrier):
    barrier.wait()
    return [i for i in range(60) if store.append_first({"key": f"run{i}"}, lambda: None)]


def test_of_two_processes_that_did_the_same_runs_one_adds_the_row(store):
    added = together(append_the_same_60, store, "ab")
    assert sorted(added["a"] + added["b"]) == list(range(60))
    assert [row["key"] for row in store.rows()] == [f"run{i}" for i in range(60)]


def test_a_run_that_cannot_publish_its_files_has_no_row(store):
    def full_disk():
        raise ValueError("no space")

    with pytest.raises(ValueError, match="no space"):
        store.append_first({"key": "k"}, full_disk)
    assert store.rows() == []
    assert store.append_first({"key": "k"}, lambda: None)


def test_make_row_has_all_that_a_result_depends_on():
    row = make_row(key="k", suite="cue", config={"method": "cp"}, seed=3, results={"acc": 0.5, "no": None}, seconds=1.5)
    assert list(row) == ["key", "suite", "config", "seed", "commit", "environment", "time", "results"]
    assert row["environment"] == environment() and row["commit"] == commit()
    assert row["environment"]["torch"] == torch.__version__ and row["environment"]["threads"] >= 1
    assert row["time"]["seconds"] == 1.5 and row["time"]["finished"].endswith("+00:00")
    with pytest.raises(ValueError, match=r"row\.results\.acc is nan"):
        make_row(key="k", suite="cue", config={}, seed=0, results={"acc": math.nan}, seconds=0.0)


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_of_a_checkout_says_when_the_package_differs(tmp_path):
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    assert rows_module._commit_of(package) is None
    git(tmp_path, "init", "-q")
    assert rows_module._commit_of(package) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "rows.jsonl").write_text("results beside the package\n")
    assert rows_module._commit_of(package) == head and len(head) == 40
    (package / "new.py").write_text("")
    assert rows_module._commit_of(package) == head + "-dirty"
    (package / "new.py").unlink()
    (package / "code.py").write_text("x = 2\n")
    assert rows_module._commit_of(package) == head + "-dirty"


def test_a_package_installed_inside_of_a_foreign_checkout_is_not_of_its_commit(tmp_path):
    (tmp_path / ".gitignore").write_text(".venv\n")
    installed = tmp_path / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    assert rows_module._commit_of(installed) is None
