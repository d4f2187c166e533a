"""`make load`: start `metalora serve`, put a load on it, write the figures as rows; code 1 if an answer is wrong."""

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from metalora.bench.store import RowStore, make_row, run_key
from metalora.serving.store import open_store
from serving_load.kills import run_kills
from serving_load.learners import NETWORKS, save_learner
from serving_load.modes import Measurement, Scene, run_labels, run_mixed, run_soak, run_tenants
from serving_load.process import ServedProcess
from serving_load.tenants import Templates

FLAGS = ["--max-tasks", "1000000", "--max-queue-rows", "8192", "--deadline-s", "120"]
FAULTS = ("errors", "adapting_errors", "lost", "changed_answers", "changed_labels", "foreign_labels", "stored_twice")
FULL = {
    "tenants": dict(counts=[1, 64, 1000], seconds=60.0),
    "ten-thousand": dict(counts=[64, 10_000], seconds=120.0),
    "labels": dict(tenants=64, requests=4000),
    "kills": dict(tasks=1000, kills=20),
    "soak": dict(tenants=1000, minutes=30, seconds=60.0),
    "mixed": dict(tenants=64, seconds=60.0),
}
SHORT = {
    "tenants": dict(counts=[1, 64, 1000], seconds=3.0),
    "ten-thousand": dict(counts=[64, 2000], seconds=4.0),
    "labels": dict(tenants=16, requests=400),
    "kills": dict(tasks=60, kills=2),
    "soak": dict(tenants=64, minutes=3, seconds=4.0),
    "mixed": dict(tenants=64, seconds=5.0),
}
MODES: dict[str, Callable[..., Iterator[Measurement]]] = {
    "tenants": run_tenants,
    "ten-thousand": run_tenants,
    "labels": run_labels,
    "kills": run_kills,
    "soak": run_soak,
    "mixed": run_mixed,
}


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="serving_load", description=__doc__)
    parser.add_argument("modes", nargs="+", choices=(*MODES, "all"), help="what is tried")
    parser.add_argument("--short", action="store_true", help="less of it: each mode in about a minute")
    parser.add_argument("--network", choices=NETWORKS, default="small", help="network of the learner")
    parser.add_argument("--learner", type=Path, default=None, help="folder of another learner")
    parser.add_argument("--out", type=Path, default=None, help="append the rows to this file")
    parser.add_argument("--flags", default="", help="further flags of `metalora serve`, in one string")
    options = parser.parse_args(arguments)
    if "all" in options.modes:
        options.modes = list(MODES)
    return options


@contextlib.contextmanager
def scene_of(options: argparse.Namespace) -> Iterator[Scene]:
    """A service with its templates, in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="serving_load_") as name:
        folder = Path(name)
        learner = options.learner or save_learner(options.network, folder)
        store = open_store(folder / "store.db")
        with contextlib.closing(store), ServedProcess(learner, folder / "store.db", flags_of(options)) as service:
            templates = Templates(store, service)
            yield Scene(service, templates, templates.inputs)


def flags_of(options: argparse.Namespace) -> list[str]:
    return [*FLAGS, *options.flags.split()]


def rows_of(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """All rows, as they are measured. Every mode has a service of its own, so that none warms up the next."""
    for mode in options.modes:
        sizes = (SHORT if options.short else FULL)[mode]
        shared = {"mode": mode, "short": options.short, "flags": flags_of(options)}
        shared["learner"] = options.network if options.learner is None else options.learner.name
        with scene_of(options) as scene:
            begun = time.monotonic()
            for case, figures in MODES[mode](scene, **sizes):
                config = shared | {"sizes": sizes} | case
                seconds = round(time.monotonic() - begun, 1)
                yield make_row(
                    key=run_key(config), suite="serving-load", config=config, seed=0, results=figures, seconds=seconds
                )
                begun = time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Try all modes, and return 1 if an answer was wrong or missing, else 0."""
    options = parse_options(arguments)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # thousands of connections
    store = RowStore(options.out) if options.out else None
    faults = 0
    for row in rows_of(options):
        if store is not None:
            store.append(row)
        print(json.dumps({"mode": row["config"]["mode"], **_case(row["config"]), **row["results"]}), flush=True)
        faults += sum(bool(row["results"].get(name)) for name in FAULTS)
    return int(faults > 0)


def _case(config: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in config.items() if name not in ("mode", "short", "flags", "learner", "sizes")}


if __name__ == "__main__":
    sys.exit(main())
