"""Rows of the table of models: what `metalora.check` finds in a small model of a family, natively and in PEFT."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from metalora import AdapterConfig
from metalora.adapters.targets import PRESETS, find_targets
from metalora.checkup import Answer, CheckReport
from metalora.checkup.check import run_check
from metalora.checkup.hosts import config_in_peft
from metalora.checkup.subject import Subject, in_one_line, subject_of
from support.model_families import Family

COLUMNS = ("attach", "forward", "gradients", "merged", "exported")
WORDS = {"yes": "right", "no": "fault", "refused": "refused", "unknown": "not known"}
MOST_FAULTS = 5  # of a row: every target of a model may have the same
SECONDS = 20  # of the processor, for a family; models that take longer are too large for the table


class TooSlow(BaseException):
    """A family takes too long; not an Exception, which a check would take for a crash of the model."""


def rows_of(family: Family) -> list[dict[str, Any]]:
    """Return a row for each preset and host; one row without columns if there is no small model that runs.

    Args:
        family: The family.
    """
    start = time.process_time()
    common = {"library": family.library, "family": family.name}
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            subject, why = subject_of(family.build(), None)
            if subject is None:
                return [{**common, "not_run": why}]
            rows = [{**common, **row} for row in _rows(subject)]
    except (Exception, TooSlow) as error:  # of the own code of the family, or a model that is too large
        return [{**common, "not_run": in_one_line(error)}]
    seconds = round(time.process_time() - start, 2)
    return [{**row, "seconds": seconds} for row in rows]


def _rows(subject: Subject) -> Iterator[dict[str, Any]]:
    seen: dict[tuple[str, ...], str] = {}  # the paths of targets -> the preset that takes them
    for preset in PRESETS:
        try:
            paths = tuple(target.path for target in find_targets(subject.model, preset))
        except ValueError as error:
            if "match nothing" not in str(error):
                yield {"targets": preset, "host": "attach", "attach": f"refused: {error}"}
            continue
        except Exception as error:  # a crash of the library
            yield {"targets": preset, "host": "attach", "attach": f"fault: {in_one_line(error)}"}
            continue
        same_as = seen.setdefault(paths, preset)
        if same_as != preset:
            continue  # the same targets under another name, such as "linear" where there is no convolution
        config = AdapterConfig("lora", rank=2, targets=preset, clip_rank=True)
        for host in ("attach", "peft"):
            yield {"targets": preset, "host": host, **_cells(subject, config, host)}


def _cells(subject: Subject, config: AdapterConfig, host: str) -> dict[str, Any]:
    try:
        report = run_check(subject, config if host == "attach" else config_in_peft(subject.model, config))
    except ValueError as error:
        return {"attach": f"refused: {error}"}
    except Exception as error:  # a crash is a fault, and the row says which
        return {"attach": f"fault: {in_one_line(error)}"}
    cells = {name: _cell(getattr(report, name)) for name in COLUMNS[1:]}
    numbers = {"number": len(report.targets), "silent": _did_not_run(report), "skipped": len(report.skipped)}
    return {"attach": "right", **cells, **numbers, "faults": report.faults[:MOST_FAULTS]}


def _cell(answer: Answer) -> str:
    return WORDS[answer.state] + (f": {answer.reason}" if answer.reason else "")


def _did_not_run(report: CheckReport) -> int:
    return sum(target.live.state == "unknown" for target in report.targets)


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `TooSlow` inside after some seconds of the processor."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"longer than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
