"""What is saved again and again while it is killed: every saved version can be told from the others."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from attack import kinds
from metalora import Condition, adapter_of, load, save
from metalora.bench.store import RowStore


@dataclass(frozen=True)
class Writer:
    """One kind of file or folder.

    Attributes:
        name: Its row in the table.
        save: Write a version, a number above 0.
        read: Return the version that is there; an error if it is not whole.
    """

    name: str
    save: Callable[[Path, int], object]
    read: Callable[[Path], int]


def fill(tensors, version):
    with torch.no_grad():
        for tensor in tensors:
            tensor.fill_(version)


def only(tensors) -> int:
    """The version that all numbers of all tensors are."""
    (version,) = {number for tensor in tensors for number in tensor.flatten().tolist()}
    assert version == int(version) and version > 0
    return int(version)


def save_adapter(path, version):
    model = kinds.adapted(kinds.LORA)
    fill(adapter_of(model).parameters(), version)
    save(model, path)


def read_adapter(path):
    return only(load(kinds.base(), path).parameters())


def save_condition(path, version):
    values = {f"{target}.c": torch.full((1, 2), float(version)) for target in kinds.TARGETS}
    Condition(values, torch.full((1, 5), float(version)), torch.tensor(float(version))).save(path)


def read_condition(path):
    condition = Condition.load(path, check_base=False)
    return only([*condition.values.values(), condition.features, condition.penalty])


def save_learner(path, version):
    learner = kinds.learner(0)
    fill(learner.adapter.parameters(), version)
    learner.save_pretrained(path)


def read_learner(path):
    from metalora.learner import MetaLearner

    return only(MetaLearner.from_pretrained(path, backbone=kinds.base(), device="cpu").adapter.parameters())


def save_task(path, version):
    from metalora.learner import AdaptedTask

    task = kinds.task_of(kinds.learner(1))
    factors = {name: torch.full_like(value, version) for name, value in task.learner.adapter.learned.items()}
    AdaptedTask(task.learner, task.readout, task.labels, None, factors).save_pretrained(path)


def read_task(path):
    from metalora.learner import AdaptedTask

    return only(AdaptedTask.from_pretrained(path, kinds.learner(1)).factors.values())


def add_row(path, version):
    """Claim a run, add its row, and give the claim back."""
    store = RowStore(path)
    assert store.claim(str(version)) or store.done(str(version))
    if not store.done(str(version)):
        store.append({"key": str(version), "results": {"text": "x" * 300}})
    store.release(str(version))


def read_rows(path):
    """The number of the last row; all before it must be there, once."""
    rows = RowStore(path).rows()
    assert [row["key"] for row in rows] == [str(version) for version in range(1, len(rows) + 1)]
    assert all(row["results"] == {"text": "x" * 300} for row in rows)
    return len(rows)


WRITERS = (
    Writer("adapter file", save_adapter, read_adapter),
    Writer("condition file", save_condition, read_condition),
    Writer("learner folder", save_learner, read_learner),
    Writer("task folder", save_task, read_task),
    Writer("rows of a table", add_row, read_rows),
)
