"""Run many runs: a row each, in processes that share one table and survive being cut off."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from metalora._util.processes import done_by_process_0, one_process_writes, process_index
from metalora.bench.store import RowStore, keyed_by_content
from metalora.config import from_dict, to_dict
from metalora.io.adapter_file import save
from metalora_papers.content import content_of
from metalora_papers.execution import OnStep, execute
from metalora_papers.registry import SUITES, open_suite
from metalora_papers.rows import Row
from metalora_papers.runs import Run

ROWS_FILE = "rows.jsonl"  # in the folder of a table, of `train` or of a grid
WAIT = 1.0  # seconds between looks at what another process is doing
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def key_of(config: Run) -> str:
    """The key of a run's row: of its configuration, and of what the files hold that it names by a path."""
    return keyed_by_content(to_dict(config), content_of(config))


def missing_runs(configs: Sequence[Run], folder: Path) -> list[Run]:
    """Return the runs that have no row in a folder yet."""
    return _without_row(configs, RowStore(folder / ROWS_FILE))


def run_all(
    configs: Sequence[Run],
    folder: Path,
    *,
    workers: int = 1,
    on_done: Callable[[Run], None] | None = None,
) -> list[Row]:
    """Execute the runs that have no row yet and return the rows of all, in the order of `configs`.

    One thread a worker; adapters are saved to `folder/adapters/<key>.safetensors`. An interrupted table keeps its
    finished rows and the checkpoints of its unfinished runs; another process may work on the same folder, and its runs
    are waited for.
    """
    store = RowStore(folder / ROWS_FILE)
    store.check()
    missing = _without_row(configs, store)
    for config in configs:
        if on_done is not None and config not in missing:
            on_done(config)
    if workers <= 1:
        for config in missing:
            _one(config, folder)
            if on_done is not None:
                on_done(config)
    elif missing:
        _in_processes(missing, folder, workers, on_done)
    while left := _without_row(missing, store):  # another process has them, or died of them
        time.sleep(WAIT)
        for config in left:
            _one(config, folder)
    rows = _rows_by_key(store)
    return [rows[key] for key in map(key_of, configs)]


def _rows_by_key(store: RowStore) -> dict[str, Row]:
    """Rows by their key, and by the key that their run has today: a field that came in later has its default.

    A row that names files and does not say what they held answers no run.
    """
    rows = store.rows()
    found = {row["key"]: row for row in rows if "key" in row}
    for row in rows:
        with contextlib.suppress(ValueError, KeyError):  # of a configuration that no longer exists
            config = from_dict(SUITES[row["suite"]].config, row["config"])
            found[keyed_by_content(to_dict(config), row.get("content", {}))] = row
    return found


def _without_row(configs: Sequence[Run], store: RowStore) -> list[Run]:
    done = _rows_by_key(store)
    return [config for config in configs if key_of(config) not in done]


def _in_processes(missing: Sequence[Run], folder: Path, workers: int, on_done: Callable[[Run], None] | None) -> None:
    context = multiprocessing.get_context("spawn")
    # torch.set_num_threads does not reach the OpenMP and BLAS of scipy: two workers would fight over the cores.
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(os.getpid(),)) as pool:
        one_run_per_backbone = {run.shared_backbone: run for run in missing if run.shared_backbone is not None}
        for future in [pool.submit(_pretrain, config) for config in one_run_per_backbone.values()]:
            future.result()
        futures = {pool.submit(_one, config, folder): config for config in missing}
        try:
            for future in as_completed(futures):
                future.result()
                if on_done is not None:
                    on_done(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start(parent: int) -> None:
    """One thread for torch, and no life after the parent's: a killed table must not leave workers behind."""
    torch.set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pretrain(config: Run) -> None:
    """Pre-train and cache the backbone of a run, so that no two runs do it at once."""
    open_suite(config)


def run_one(config: Run, folder: Path, *, on_step: OnStep | None = None) -> Row:
    """Execute one run, or return the row that it already has; ValueError if another process is at it.

    Processes of one torch.distributed group execute it together.
    """
    store = RowStore(folder / ROWS_FILE)
    store.check()
    if _without_row([config], store):
        _one(config, folder, on_step)
    row = _rows_by_key(store).get(key_of(config))
    if row is None:
        raise ValueError(f"{folder}: another process is at this run")
    return row


def _one(config: Run, folder: Path, on_step: OnStep | None = None) -> None:
    key, store = key_of(config), RowStore(folder / ROWS_FILE)
    if not done_by_process_0(lambda: store.claim(key)):
        return
    try:
        checkpoint = folder / "checkpoints" / f"{key}.pt"
        row, adapter, extra_module = execute(config, checkpoint=checkpoint, on_step=on_step)
        with one_process_writes() as writes:
            if writes:
                if adapter is not None:
                    path = folder / "adapters" / f"{key}.safetensors"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save(adapter.model, path, getattr(torch, config.train.store), extra_module=extra_module)
                store.append(row)
                checkpoint.unlink(missing_ok=True)
    finally:
        if process_index() == 0:
            store.release(key)
