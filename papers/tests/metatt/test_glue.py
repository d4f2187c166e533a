"""GLUE from TSV files that are laid out like the published ones, and from a stand-in for the Hub."""

import sys
from types import SimpleNamespace

import pytest

from metalora_papers.metatt.glue import TASKS, Glue

HEADERS = {
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "stsb": "index\tgenre\tsentence1\tsentence2\tscore",
    "mnli": "index\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
}


def write(root, task, split, n):
    """n lines whose texts say their number and whose labels take turns; quotes are plain characters in GLUE."""
    wanted = TASKS[task]
    header = "a\tb\tc\td" if wanted.headless else HEADERS[task]
    names = [str(k) for k in range(4)] if wanted.headless else header.split("\t")
    lines = [] if wanted.headless else [header]
    for k in range(n):
        values = {name: f'"text {k} {name}' for name in names}
        values[wanted.label] = wanted.labels[k % len(wanted.labels)] if wanted.labels else f"{k % 6}.5"
        lines.append("\t".join(values[name] for name in names))
    folder = root / wanted.folder
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    for task, wanted in TASKS.items():
        write(tmp_path, task, "train", 60)
        write(tmp_path, task, wanted.dev, 12)
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_texts_and_labels_of_every_task(root, task):
    glue, wanted = Glue(root), TASKS[task]
    train, val, test = (glue.examples(task, split, 1000, 0) for split in ("train", "val", "test"))
    assert [len(part.first) for part in (train, val, test)] == [54, 6, 12]
    assert not set(train.first) & set(val.first)
    assert glue.classes(task) == len(wanted.labels)
    for part in (train, val, test):
        assert bool(part.second) == (len(wanted.columns) == 2)
        for k, (first, label) in enumerate(zip(part.first, part.labels, strict=True)):
            number = int(first.split()[1])
            assert label == (number % len(wanted.labels) if wanted.labels else number % 6 + 0.5)
            assert first == f'"text {number} {wanted.columns[0]}'
            assert not part.second or part.second[k] == f'"text {number} {wanted.columns[1]}'


def test_as_many_as_asked_for_in_an_order_of_the_seed(root):
    glue = Glue(root)
    few = glue.examples("rte", "train", 10, 0)
    assert len(few.first) == 10 and few == glue.examples("rte", "train", 10, 0) != glue.examples("rte", "train", 10, 1)


def test_from_the_hub(monkeypatch):
    from metalora_papers.metatt.glue import _rows

    asked = []

    def load_dataset(name, task, split):
        asked.append((name, task, split))
        return {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [0, 2]}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    _rows.cache_clear()
    found = Glue().examples("mnli", "test", 5, 0)
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched")]
    assert set(zip(found.first, found.second, found.labels, strict=True)) == {("a", "c", 0), ("b", "d", 2)}
    _rows.cache_clear()


def test_what_cannot_be(root, monkeypatch):
    glue = Glue(root)
    with pytest.raises(ValueError, match="unknown GLUE task 'rt'; did you mean 'rte'"):
        glue.examples("rt", "train", 5, 0)
    with pytest.raises(ValueError, match="the train split has 1 examples, all with one label"):
        glue.examples("rte", "train", 1, 0)
    (root / "QNLI" / "train.tsv").write_text("index\tquestion\tlabel\n")
    with pytest.raises(ValueError, match="QNLI/train.tsv: no column 'sentence'"):
        glue.examples("qnli", "train", 5, 0)
    (root / "SST-2" / "train.tsv").unlink()
    with pytest.raises(ValueError, match="SST-2/train.tsv: no such file"):
        glue.examples("sst2", "train", 5, 0)
    write(root, "sst2", "train", 4)
    file = root / "SST-2" / "train.tsv"
    file.write_text(file.read_text().replace("\t1", "\tyes"))
    with pytest.raises(ValueError, match="label 'yes', expected one of 0, 1"):
        glue.examples("sst2", "train", 5, 0)

    def offline(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(ValueError, match=r"could not be read \(ConnectionError: no network\); give the folder"):
        Glue().examples("cola", "train", 5, 0)
