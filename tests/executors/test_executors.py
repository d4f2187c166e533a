"""The executors: work that ends, work that fails, and processes that die."""

import functools
import operator
import os
import re
import signal
import sys
from contextlib import closing

import pytest

from metalora.cli.failures import failure_line
from metalora.executors.choice import executor_of
from metalora.executors.config import ExecutorConfig, RayConfig, SlurmConfig
from metalora.executors.executor import Ended, ThisProcess, execute_all
from metalora.executors.local import LocalProcesses

NOTHING = functools.partial(operator.call, dict().get, "nothing")
FAILS = functools.partial(str, "no data")
DIES = functools.partial(os._exit, 3)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
IS_KILLED = functools.partial(operator.call, signal.raise_signal, signal.SIGKILL)


def ended_by_work(executor, works):
    """What has become of each piece of work, in the order of the works."""
    with closing(executor):
        ended = {id(found.work): found for found in execute_all(executor, works)}
    return [ended[id(work)] for work in works]


def test_this_process_does_one_after_the_other():
    assert ended_by_work(ThisProcess(), [NOTHING, FAILS]) == [Ended(NOTHING), Ended(FAILS, "no data")]


def test_a_local_process_that_dies_takes_its_work_alone_with_it():
    works = [NOTHING, DIES, FAILS, IS_KILLED, functools.partial(str, "the last one")]
    found = ended_by_work(LocalProcesses(2), works)
    assert [ended.error for ended in found] == [None, None, "no data", None, "the last one"]
    assert [ended.death for ended in found] == [
        None,
        "its process ended with exit code 3",
        None,
        "its process was ended by SIGKILL (Killed)",
        None,
    ]


def test_local_processes_have_one_thread_and_show_no_bars():
    found = ended_by_work(LocalProcesses(1), [functools.partial(os.getenv, name) for name in ENVIRONMENT])
    assert {name: ended.error for name, ended in zip(ENVIRONMENT, found, strict=True)} == ENVIRONMENT


def test_a_local_process_that_ctrl_c_has_reached_says_nothing(capfd):
    (found,) = ended_by_work(LocalProcesses(1), [functools.partial(exec, "raise KeyboardInterrupt")])
    assert found.death == "its process ended with exit code 1" and capfd.readouterr().err == ""


def test_work_that_cannot_be_pickled_is_refused():
    with closing(LocalProcesses(1)) as executor:
        with pytest.raises(ValueError, match="what a process shall do cannot be pickled .*; use one worker$"):
            executor.start(lambda: None)
        assert executor._processes == []


def test_work_is_asked_for_when_there_is_a_place_for_it():
    done = []
    works = (functools.partial(done.append, number) for number in range(3))
    for ended in execute_all(ThisProcess(), works):
        if ended.work.args == (1,):
            works.close()
    assert done == [0, 1]


def test_local_processes_are_used_again_and_stopped_at_the_end():
    executor = LocalProcesses(1)
    with closing(executor):
        for _ in range(3):
            assert [ended.error for ended in execute_all(executor, [FAILS])] == ["no data"]
        (worker,) = executor._processes
    assert not worker.process.is_alive() and executor._processes == []


@pytest.mark.slow
def test_ray_reports_what_fails_and_what_dies(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "local")
    from metalora.executors.on_ray import OnRay

    found = ended_by_work(OnRay(2, RayConfig()), [NOTHING, FAILS, IS_KILLED])
    assert [ended.error for ended in found] == [None, "no data", None]
    assert found[2].death.startswith("Ray lost its process (") and found[0].death is found[1].death is None


def test_jobs_of_submitit_report_what_fails(tmp_path):
    pytest.importorskip("submitit")
    config = ExecutorConfig("slurm", workers=3, slurm=SlurmConfig(cluster="local"))
    with executor_of(config, tmp_path) as executor:
        assert ended_by_work(executor, [NOTHING, FAILS]) == [Ended(NOTHING), Ended(FAILS, "no data")]
    assert list((tmp_path / "slurm").glob("*_log.out"))


@pytest.mark.slow  # submitit waits 15 seconds for the file of a result
def test_a_job_of_submitit_that_dies_is_reported(tmp_path):
    pytest.importorskip("submitit")
    config = ExecutorConfig("slurm", slurm=SlurmConfig(cluster="local"))
    with executor_of(config, tmp_path) as executor:
        (found,) = ended_by_work(executor, [IS_KILLED])
    assert re.fullmatch(rf"job \d+ ended without a result \(\w+\), see {tmp_path}/slurm/.*err", found.death)


def test_where_there_is_no_slurm_the_message_says_what_can_be_tried(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no Slurm here; --slurm.cluster local"):
        with executor_of(ExecutorConfig("slurm"), tmp_path):
            pass


@pytest.mark.parametrize("executor, package", [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named_with_its_extra(executor, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError) as missing:
        with executor_of(ExecutorConfig(executor), tmp_path):
            pass
    assert failure_line(missing.value) == f'{package} is not installed: pip install "metalora[{executor}]"'


SBATCH = """#!/bin/sh
cat "$1" > "$(dirname "$0")/script"
echo "Submitted batch job 7"
"""


def asked_of_slurm(config, folder, monkeypatch):
    """What the script of a job asks for, and the script, where `sbatch` only keeps it."""
    pytest.importorskip("submitit")
    from metalora.executors.on_slurm import OnSlurm

    for name, text in {"sbatch": SBATCH, "srun": "#!/bin/sh\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    OnSlurm(2, folder / "slurm", config).start(NOTHING)
    script = (folder / "script").read_text()
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE)) | {"script": script}


def test_a_job_asks_slurm_for_what_its_settings_say(tmp_path, monkeypatch):
    config = SlurmConfig(partition="short", account="lab", minutes=90, memory_gb=12.5, cpus=4, gpus=1)
    asked = asked_of_slurm(config, tmp_path, monkeypatch)
    assert asked["partition"] == "short" and asked["account"] == "lab"
    assert asked["time"] == "90" and asked["mem"] == "12800MB"
    assert asked["cpus-per-task"] == "4" and asked["gpus-per-node"] == "1"
    assert "\nexport OMP_NUM_THREADS=4\n" in asked["script"]
    assert asked["output"] == f"{tmp_path}/slurm/%j_0_log.out"


def test_settings_that_are_empty_are_those_of_the_cluster(tmp_path, monkeypatch):
    assert not {"partition", "account", "gpus-per-node"} & {*asked_of_slurm(SlurmConfig(), tmp_path, monkeypatch)}
