"""A short attack finds no fault, and the attack itself notices faults."""

import pytest
import torch

from attack import __main__ as attack
from attack import judge, kills, kinds, report

COUNTS = {"--mutations": 110, "--kills": 5, "--trainings": 1, "--forwards": 80}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of a short attack."""
    folder = tmp_path_factory.mktemp("attack")
    arguments = [word for name, count in COUNTS.items() for word in (name, str(count))]
    code = attack.main([*arguments, "--workers", "1", "--out", str(folder / "rows")])
    return code, attack.RowStore(folder / "rows").rows()


def test_a_short_attack_finds_no_fault(rows):
    code, stored = rows
    assert [fault for row in stored for fault in row["faults"]] == [] and code == 0
    tried = {part: sum(row["tried"] for row in stored if row["part"] == part) for part in report.HEADS}
    assert tried["mutations"] >= 110 and tried["kills"] == 6 and tried["tenants"] == 3 * 80
    assert all({"seed", "commit", "environment"} <= row.keys() for row in stored)


def test_the_table_is_made_of_rows_alone(rows):
    _, stored = rows
    text = report.table(stored)
    assert all(f"| {kind.name} |" in text for kind in kinds.KINDS) and text.endswith("0 faults")


# name -> (what a loader does with the model and the path, the verdict)
def nothing(model, path):
    return torch.zeros(4, 3)


def other(model, path):
    return torch.ones(4, 3)


def not_a_number(model, path):
    return torch.full((4, 3), torch.nan)


def without_the_name(model, path):
    raise ValueError("a bad file")


def another_error(model, path):
    raise KeyError(str(path))


def clear(model, path):
    raise ValueError(f"{path}: a bad file")


def leaves_a_hook(model, path):
    model.register_forward_hook(lambda *_: None)
    raise ValueError(f"{path}: a bad file")


def leaves_a_number(model, path):
    model[0].weight.data.add_(1)
    raise ValueError(f"{path}: a bad file")


LOADERS = {
    nothing: "same",
    clear: "refused",
    other: "other output",
    not_a_number: "NaN",
    without_the_name: "unclear error",
    another_error: "unclear error",
    leaves_a_hook: "model changed",
    leaves_a_number: "model changed",
}


@pytest.mark.parametrize("load, verdict", LOADERS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_the_judge_notices_each_fault(load, verdict, tmp_path):
    kind = judge.Kind("x", 1, "x", write=None, model=kinds.base, use=load)
    assert judge.judge(kind, tmp_path / "x", torch.zeros(4, 3), kinds.X)[0] == verdict


def in_place(path, version):
    """A writer that is not atomic: the second half of the file comes later."""
    with path.open("w") as file:
        file.write(f"{version} ")
        file.flush()
        with (path.parent / "beside").open("w"):
            pass
        file.write(str(version))


def read_both(path):
    first, second = path.read_text().split()
    assert first == second
    return int(first)


def test_a_writer_that_is_not_atomic_is_noticed(tmp_path):
    from random import Random

    from attack.writers import Writer

    wrong = set()
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        wrong.add(kills.kill_writer(Writer("x", in_place, read_both), Random(number), folder).partition(":")[0])
    assert "torn" in wrong and "leftovers" in wrong
