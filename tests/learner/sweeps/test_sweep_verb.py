"""`metalora sweep` from files to settings that `finetune` and `fit` take."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metalora.cli.learner_verbs import finetune, fit
from metalora.cli.settings_file import defaults_of
from metalora.learner import FineTuned, LearnerConfig, MetaLearner
from support.command import metalora_command
from support.own_tasks import write_messages

SEARCH = ["--methods", "lora", "--ranks", 1, "--targets", "query", "--steps", 2, "--validate-every", 1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_messages(folder, 100)
    settings = {"max_length": 8, "batch_size": 8, "adapter": {"rank": 1, "targets": "query"}}
    (folder / "settings.yaml").write_text(json.dumps(settings))
    learner = {**settings, "support": 12, "query": 6, "label_sets": 1}
    (folder / "learner.yaml").write_text(json.dumps(learner))
    return folder


def search(files, job, settings, *arguments):
    """(exit code, standard output, standard error) of a search."""
    data = ["--data", files / "sentences.csv", "--text-column", "text", "--config", files / settings]
    return metalora_command("sweep", files / job, "--job", job, "--backbone", "minilm", *data, *SEARCH, *arguments)


def settings_of(adapter):
    return adapter.method, adapter.rank, adapter.targets, adapter.clip_rank


def test_a_fine_tuning_is_searched_and_its_settings_are_used(files):
    code, out, error = search(files, "finetune", "settings.yaml", "--label-columns", "tense", "--trials", 2)
    assert code == 0, error
    assert out.count("\tcomplete\t") == 2 and "The search was" in out and "best.yaml" in out
    tuned = FineTuned.from_pretrained(files / "finetune" / "best")
    assert (tuned.config.steps, tuned.config.batch_size, tuned.adapter.config.rank) == (2, 8, 1)
    known = defaults_of(finetune, ["minilm", "--config", str(files / "finetune" / "best.yaml")])
    assert known["config"] == tuned.config and settings_of(known["adapter"]) == ("lora", 1, "query", True)
    again = ["--data", files / "sentences.csv", "--text-column", "text", "--label-column", "tense", "--steps", 1]
    code, _, error = metalora_command(
        "finetune", "minilm", *again, "--config", files / "finetune" / "best.yaml", "--out", files / "run"
    )
    assert code == 0, error
    run = FineTuned.from_pretrained(files / "run")
    assert (run.config.steps, run.config.lr, run.config.batch_size) == (1, tuned.config.lr, 8)
    assert settings_of(run.adapter.config) == ("lora", 1, "query", True)


def test_other_labels_are_another_search(files):
    code, _, error = search(files, "finetune", "settings.yaml", "--label-columns", "topic", "--trials", 2)
    assert code == 2 and "other values of data; give the same ones" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [("stepz: 5", "unknown key 'stepz'; did you mean 'steps'?"), ("- 5", "expected a mapping of "), ("a: [", "YAML")],
)
def test_a_wrong_file_of_settings_is_one_line(files, tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    for verb in (["fit", tmp_path / "m", "--backbone", "minilm"], ["finetune", "minilm", "--out", tmp_path / "m"]):
        code, out, error = metalora_command(*verb, "--data", files / "sentences.csv", "--config", path)
        assert code == 2 and out == "" and message in error and str(path) in error and error.count("\n") == 1


def test_settings_of_a_learner_become_defaults(files):
    found = defaults_of(fit, ["learner", f"--config={files / 'learner.yaml'}"])["config"]
    assert isinstance(found, LearnerConfig) and (found.support, found.steps) == (12, 500)
    assert defaults_of(fit, ["learner"]) == {}


def test_a_search_of_which_all_trials_fail_ends_with_1(files, tmp_path):
    (tmp_path / "settings.yaml").write_text("lr: 1.0e+30\nmax_length: 8\nadapter: {rank: 1, targets: query}")
    files_of_search = [tmp_path / "search", "--job", "finetune", "--backbone", "minilm", "--trials", 1]
    data = ["--data", files / "sentences.csv", "--text-column", "text", "--label-columns", "tense"]
    code, out, error = metalora_command(
        "sweep", *files_of_search, *data, "--config", tmp_path / "settings.yaml", *SEARCH
    )
    assert code == 1 and out == "" and "search: The only trial failed: " in error


@pytest.mark.slow
def test_a_learner_is_searched(files):
    code, out, error = search(files, "fit", "learner.yaml", "--trials", 2, "--json")
    assert code == 0, error
    result = json.loads(out)
    assert len(result["trials"]) == 2 and result["test"]["unit"] == "episodes"
    assert MetaLearner.from_pretrained(files / "fit" / "best").config.adapter.rank == 1


def start_search(files, folder, *arguments):
    """The process of a search of eight trials, as a terminal starts it."""
    command = [sys.executable, "-m", "metalora.cli.main", "sweep", folder, "--job", "finetune"]
    command += ["--backbone", "minilm", "--data", files / "sentences.csv", "--text-column", "text"]
    command += ["--label-columns", "tense", "--config", files / "settings.yaml", *SEARCH, "--trials", 8, *arguments]
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(list(map(str, command)), text=True, start_new_session=True, **options)


def wait_for_trials(folder, count):
    """Wait until so many trials have begun."""
    journal = folder / "journal.log"
    while not journal.exists() or journal.read_text().count('"choice"') < count:
        time.sleep(0.02)


def workers_of(process):
    """The numbers of the processes that a command has started to do trials."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"spawn_main" in stat.with_name("cmdline").read_bytes():
                found.append(int(stat.parent.name))
    return found


def check_eight_trials(folder):
    """Fail unless the folder has eight complete trials, each with a choice of its own."""
    trials = json.loads((folder / "result.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 8 and len({trial["number"] for trial in trials}) == 8
    assert sum(trial["is_first"] for trial in trials) == 1
    choices = [json.dumps(trial["choice"], sort_keys=True) for trial in trials]
    assert len(set(choices)) == 8 and max(trial["number"] for trial in trials) <= 8  # one may have been cut off


@pytest.mark.slow
def test_two_processes_of_which_one_is_killed_finish_a_search(files, tmp_path):
    """No trial is lost, none is there twice, and the one that was killed is done again."""
    first, second = (start_search(files, tmp_path / "search", "--no-prune") for _ in range(2))
    wait_for_trials(tmp_path / "search", 2)
    first.kill()
    first.communicate()
    _, error = second.communicate()
    assert second.returncode == 0, error[-2000:]
    check_eight_trials(tmp_path / "search")


@pytest.mark.slow
def test_a_search_of_which_a_worker_is_killed_has_all_trials(files, tmp_path):
    command = start_search(files, tmp_path / "search", "--no-prune", "--workers", 2)
    wait_for_trials(tmp_path / "search", 2)
    os.kill(workers_of(command)[0], signal.SIGKILL)
    out, error = command.communicate()
    assert command.returncode == 0, error[-2000:]
    assert error.count("a worker of the search died: its process was ended by SIGKILL (Killed)") == 1
    assert out.count("\tcomplete\t") == 8
    check_eight_trials(tmp_path / "search")


@pytest.mark.slow
def test_ctrl_c_ends_the_workers_and_the_same_command_goes_on(files, tmp_path):
    command = start_search(files, tmp_path / "search", "--no-prune", "--workers", 2)
    wait_for_trials(tmp_path / "search", 4)
    workers = workers_of(command)
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does, to the workers as well
    _, error = command.communicate()
    assert command.returncode == 130 and error.splitlines()[-1].startswith("metalora: stopped; "), error
    assert len(workers) == 2 and not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert "Traceback" not in error and (tmp_path / "search" / "report.html").is_file()
    again = start_search(files, tmp_path / "search", "--no-prune", "--json")
    out, error = again.communicate()
    assert again.returncode == 0, error[-2000:]
    assert [trial["state"] for trial in json.loads(out)["trials"]] == ["complete"] * 8
