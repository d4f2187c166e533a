"""Sections for the supervisor of the GPU bench, which end as sections on a card may end."""

import os
import signal
import time

from metalora.bench.gpu.section import Section


def works(budget):
    return {"cases": [{"case": "one"}]}


def dies(budget):
    os._exit(3)  # as after a segmentation fault


def hangs(budget):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as a call into a library that never returns
    time.sleep(60)


def no_number(budget):
    return {"cases": [{"case": "one", "seconds": [1.0, float("nan")]}]}


def sections(dry_run):
    runs = {"first": works, "dies": dies, "hangs": hangs, "no number": no_number, "last": works}
    return [Section(name, 0.5 if run is hangs else 30, {}, run) for name, run in runs.items()]


def broken(dry_run):
    raise ImportError("no package")
