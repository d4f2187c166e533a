"""Ray Serve next to one process of uvicorn: requests a second, CPU time of a request, and a replica that is killed.

`PYTHONPATH=tests python tools/serving_ray.py ROWS [SECONDS]` serves a small network of texts, adds rows to a file of
JSON lines, and prints from how many machines on Ray pays. All runs are on this machine; only the last sentence is
computed from the rows.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from metalora.learner import MetaLearner
from support.service_load import ServedProcesses, kill, loaded, make_tasks
from support.serving import save_text_learner

CLIENTS = 16
TASKS = 16
RUNS = {"uvicorn": (), "ray, 1 replica": ("--ray",), "ray, 2 replicas": ("--ray", "--replicas", "2")}
KILLED = "ray, 2 replicas, one killed"


def measured(name: str, flags: tuple[str, ...], folder: Path, seconds: float) -> dict[str, Any]:
    """Return the row of a run.

    Args:
        name: What the row is called.
        flags: Flags of `metalora serve`.
        folder: A folder with the learner, for the store and the log.
        seconds: How long the clients ask.
    """
    learner = MetaLearner.from_pretrained(folder / "learner", device="cpu")
    store = Path(tempfile.mkdtemp(dir=folder)) / "tasks.db"
    ports = ("--port", "8791", "--threads", "1")
    with ServedProcesses(folder / "learner", store, folder / "log", *ports, *flags) as service:
        expected = make_tasks(service, learner, TASKS)
        loaded(service, expected, CLIENTS, 2)  # so that every replica has its tasks in memory
        before, start = service.cpu_seconds(), time.monotonic()
        kill_one = name == KILLED
        meanwhile: Callable[[], None] = (lambda: _kill_later(service, seconds / 4)) if kill_one else (lambda: None)
        answers, _ = loaded(service, expected, CLIENTS, seconds, meanwhile)
        wall, cpu = time.monotonic() - start, service.cpu_seconds() - before
        return {
            "run": name,
            "requests": answers.count,
            "failed": len(answers.failures),
            "wrong": answers.wrong,
            "requests_per_second": round(answers.count / wall, 1),
            "cpu_ms_per_request": None if kill_one else round(1000 * cpu / answers.count, 2),
            "p50_ms": answers.percentile(0.5),
            "p99_ms": answers.percentile(0.99),
            "start_seconds": round(service.start_seconds, 1),
            "clients": CLIENTS,
            "cores": os.cpu_count(),
            "load_before": round(os.getloadavg()[0], 1),
        }


def _kill_later(service: ServedProcesses, seconds: float) -> None:
    time.sleep(seconds)
    kill(service.replicas()[0])


def sentence(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return from how many machines on Ray pays, by the CPU time of a request.

    A machine with Ray answers the share of what uvicorn alone answers that the two CPU times say; so n machines with
    Ray answer n times this share.

    Args:
        rows: Rows by name.
    """
    alone, ray = (rows[name]["cpu_ms_per_request"] for name in ("uvicorn", "ray, 2 replicas"))
    machines = int(ray / alone) + 1
    return (
        f"Computed, not measured: a request costs {alone} ms of CPU with uvicorn alone and {ray} ms with Ray, so Ray "
        f"answers more than one machine without it from {machines} machines on; where a request costs more than "
        f"{ray - alone:.1f} ms without it, from 2 machines on."
    )


def main() -> None:
    """Measure all runs."""
    out, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_text_learner(folder)
        for run, flags in (RUNS | {KILLED: RUNS["ray, 2 replicas"]}).items():
            rows[run] = measured(run, flags, folder, seconds)
            print(json.dumps(rows[run]), flush=True)
            with out.open("a") as file:
                file.write(json.dumps(rows[run]) + "\n")
    print(sentence(rows))


if __name__ == "__main__":
    main()
