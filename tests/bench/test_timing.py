"""Interleaved timing: what is counted, and how a ratio is formed. No clock is asserted on."""

import pytest

from metalora.bench.tasks import tasks_in_a_batch
from metalora.bench.timing import interleaved, ratio


def test_cases_take_turns_and_warm_rounds_do_not_count():
    seen = []
    cases = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    times = interleaved(cases, 3, warm=1)
    assert seen == ["a", "b"] * 4 and {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_formed_round_by_round():
    found = ratio({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]}, "a", "b")
    assert (found.median, found.low, found.high, found.seconds) == (2.0, 1.5, 2.5, 4.0)
    assert ratio({"a": [3.0], "b": [2.0]}, "a", "b").median == 1.5


def test_no_rounds():
    with pytest.raises(ValueError, match="rounds is 0"):
        interleaved({}, 0)


def test_many_tasks_in_a_batch():
    pytest.importorskip("transformers")
    found = {one.name: one for one in tasks_in_a_batch(rounds=1, batch=3, tokens=4)}
    assert set(found) == {f"{what}, {who}" for what in ("forward", "training step") for who in ("many tasks", "one id")}
    assert all(one.median > 0 and one.reference.endswith("one task") for one in found.values())
