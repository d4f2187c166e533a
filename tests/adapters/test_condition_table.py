"""A table of conditions gives what stacking gives, refuses foreign ones, and never gives one tenant another's."""

import threading

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, Condition, ConditionConfig, attach
from metalora.adapters.conditioning.condition_table import FIRST_CAPACITY, ConditionTable, stacked
from support.adapters import randomise

GIVEN = ConditionConfig(source="tensor", scope="support", labelled=False, feature_size=5)
X = torch.arange(48.0).reshape(8, 6) / 7
METHODS = {"metalora-cp": None, "metalora-tr": None, "lora": ("A", "B")}


def adapted(method="metalora-cp", seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    config = AdapterConfig(method, rank=2, targets=("0", "2"), condition=GIVEN, generated=METHODS[method])
    adapter = attach(model, config)
    randomise(adapter, 0.5)
    return model, adapter


def conditions_of(adapter, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [adapter.condition(3 * torch.randn(4, 5, generator=draw)).detach() for _ in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_taken_rows_are_those_that_stacking_gives(method):
    model, adapter = adapted(method)
    conditions = conditions_of(adapter, 5)
    table, order = ConditionTable.of(conditions), [4, 0, 0, 2, 3, 1, 4, 2]
    taken, expected = table.take(order), Condition.stack([conditions[k] for k in order])
    for key, value in expected.values.items():
        assert torch.equal(taken.values[key], value)
    assert len(taken) == 8 and taken.features.shape == (8, 0) and taken.maker == conditions[0].maker
    assert torch.equal(model(X, condition=taken), model(X, condition=expected))
    assert torch.equal(table.take(torch.tensor(order)).vector(), expected.vector())


def test_a_table_grows_and_uses_rows_again_but_never_a_number():
    _, adapter = adapted()
    conditions = conditions_of(adapter, 3 * FIRST_CAPACITY)
    table = ConditionTable.of(conditions)
    size = table.bytes
    assert size == 4 * FIRST_CAPACITY * conditions[0].vector().numel() * 4  # doubled twice
    for round_ in range(5):
        for k in range(len(conditions)):
            table.remove(round_ * len(conditions) + k)
            number = table.add(conditions[k])
            assert number == (round_ + 1) * len(conditions) + k
            assert torch.equal(table.take([number]).vector(), conditions[k].vector())
    assert table.bytes == size and len(table) == len(conditions)
    with pytest.raises(ValueError, match="condition 0 is not in the table"):
        table.take([number, 0])
    with pytest.raises(ValueError, match="condition 0 is not in the table"):
        table.remove(0)


def test_a_taken_condition_does_not_change_with_the_table():
    _, adapter = adapted()
    first, second = conditions_of(adapter, 2)
    table = ConditionTable.of([first])
    taken = table.take([0])
    table.remove(0)
    table.add(second)
    assert torch.equal(taken.vector(), first.vector())


def test_numbers_in_half_precision_come_out_in_float32():
    _, adapter = adapted()
    conditions = conditions_of(adapter, 2)
    table = ConditionTable.of(conditions, dtype=torch.float16)
    assert table.bytes == ConditionTable.of(conditions).bytes / 2
    taken = table.take([1])
    assert torch.equal(taken.vector(), conditions[1].vector().half().float())
    too_large = Condition({k: v * 1e6 for k, v in conditions[0].values.items()}, *[torch.zeros(1, 0), torch.zeros(())])
    with pytest.raises(ValueError, match="not finite in torch.float16"):
        table.add(too_large)
    assert len(table) == 2


REFUSED = {
    "two conditions": (lambda c: Condition.stack([c, c]), "one condition, not one for 2 examples"),
    "another adapter's": (lambda c: conditions_of(adapted(seed=1)[1], 1)[0], "conditions of different adapters"),
    "another shape": (lambda c: made({k: torch.zeros(1, 3) for k in c.values}), r"has shape \(1, 3\), expected"),
    "a key less": (lambda c: made(dict(list(c.values.items())[:1])), "no value for '2.c'"),
    "a key more": (lambda c: made(c.values | {"x": torch.zeros(1, 2)}), "'x' is not a factor"),
    "NaN": (lambda c: made({k: v * torch.nan for k, v in c.values.items()}), "not finite"),
}


def made(values):
    return Condition(dict(values), torch.zeros(1, 0), torch.zeros(()))


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_what_is_no_condition_of_the_same_adapter_is_refused(change, message):
    _, adapter = adapted()
    condition = conditions_of(adapter, 1)[0]
    table = ConditionTable.of([condition])
    with pytest.raises(ValueError, match=message):
        table.add(change(condition))
    assert len(table) == 1 and torch.equal(table.take([0]).vector(), condition.vector())


def test_an_empty_table_has_nothing_to_take():
    table = ConditionTable()
    assert len(table) == table.bytes == 0
    with pytest.raises(ValueError, match="no condition to take"):
        table.take([])
    with pytest.raises(ValueError, match="condition 3 is not in the table"):
        table.take([3])


def test_threads_that_add_remove_and_take_get_their_own():
    _, adapter = adapted()
    conditions = conditions_of(adapter, 6)
    table, problems, entered = ConditionTable(), [], threading.Barrier(6)

    def work(own):
        entered.wait()
        for _ in range(60):
            numbers = [table.add(conditions[own]) for _ in range(4)]
            if not torch.equal(table.take(numbers).vector(), conditions[own].vector().expand(4, -1)):
                problems.append(own)
            for number in numbers:
                table.remove(number)

    threads = [threading.Thread(target=work, args=(own,)) for own in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems and len(table) == 0


def test_a_row_lives_as_long_as_its_object():
    _, adapter = adapted()
    conditions = conditions_of(adapter, 3)
    table = ConditionTable()
    rows = [table.keep(condition) for condition in conditions]
    assert torch.equal(rows[1].condition().vector(), conditions[1].vector()) and len(table) == 3
    numbers = [row.number for row in rows]
    with table._lock:  # Python may destroy an object while this thread is in a method of the table
        del rows[1]
    assert len(table) == 2
    with pytest.raises(ValueError, match=f"condition {numbers[1]} is not in the table"):
        table.take([numbers[1]])
    table.remove(numbers[0])  # and then the row goes, too
    rows.clear()
    assert len(table) == 0
    for _ in range(FIRST_CAPACITY + 1):
        table.keep(conditions[0])  # nobody holds the row
    assert table.bytes == FIRST_CAPACITY * conditions[0].vector().numel() * 4


def test_rows_of_one_table_are_read_at_once(monkeypatch):
    _, adapter = adapted()
    conditions = conditions_of(adapter, 3)
    expected = Condition.stack(conditions)
    table, other = ConditionTable(), ConditionTable()
    rows = [table.keep(condition) for condition in conditions]
    for mixed in ([rows[0], conditions[1], rows[2]], [rows[0], other.keep(conditions[1]), rows[2]], conditions):
        assert torch.equal(stacked(mixed).vector(), expected.vector())
    monkeypatch.setattr(Condition, "stack", lambda stored: pytest.fail("one after another"))
    assert torch.equal(stacked(rows).vector(), expected.vector())
