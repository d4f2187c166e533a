"""Every kind of file under up to three changes at once: the output is right, or there is one clear error.

`attack.judge` decides, by readers that share no code with the library. Another number in a file without a checksum
(LoRA folders, LoCon files, folders of `metalora.peft`), or with a new one, is a legal other file.
"""

import random
import resource
import signal
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attack.judge import FINE
from attack.kinds import KINDS
from attack.workers import Case

HANG_SECONDS = 60  # of a load that takes less than a tenth of a second
MORE_KILOBYTES = 2**20
NAMES = [kind.name for kind in KINDS]
CHECKS = dict(suppress_health_check=list(HealthCheck), deadline=None)


class Hang(BaseException):
    """A load did not end."""


def stop(*_):
    raise Hang


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Kind -> its valid files, made when they are first asked for."""
    made = {}

    def case_of(name):
        if name not in made:
            kind = next(kind for kind in KINDS if kind.name == name)
            made[name] = Case(kind, tmp_path_factory.mktemp("fuzz") / "files")
        return made[name]

    return case_of


def fuzz(case, examples):
    before = signal.signal(signal.SIGALRM, stop)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=examples, **CHECKS)
    @given(st.integers(0, 2**32), st.integers(1, 3))
    def check(seed, times):
        signal.alarm(HANG_SECONDS)
        mutation, verdict, words = case.attack(random.Random(seed), times)
        signal.alarm(0)
        assert verdict in FINE, f"{mutation}: {verdict} ({words})"

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MORE_KILOBYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_few_changes(name, cases):
    fuzz(cases(name), 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_changes(name, cases):
    fuzz(cases(name), 400)
