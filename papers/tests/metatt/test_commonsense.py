"""Commonsense170k: records as questions, splits, and what is wrong with a folder."""

import json

import pytest
from papers_oracles.commonsense import record, write_folder

from metalora_papers.config import CausalRunConfig
from metalora_papers.metatt.commonsense import Commonsense, question


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("commonsense"), train=200)


CHOICES = {
    "true/false": ("true", ("true", "false")),
    "ending1/ending2/ending3/ending4": ("ending3", ("ending1", "ending2", "ending3", "ending4")),
    "answer1/answer2/answer3 ": ("answer1", ("answer1", "answer2", "answer3")),
    "solution1/solution2\n": ("solution2", ("solution1", "solution2")),
}


@pytest.mark.parametrize("format, answer, names", [(f, a, n) for f, (a, n) in CHOICES.items()], ids=CHOICES)
def test_a_record_is_a_question(format, answer, names):
    found = question(
        {
            "instruction": f"Why?\n\nAnswer format: {format}",
            "input": "",
            "output": f"it is {answer}.",
            "answer": answer,
        },
        "here",
        "piqa",
    )
    assert (
        found.choices == tuple(f"it is {name}." for name in names) and found.choices[found.answer] == f"it is {answer}."
    )
    assert found.prompt.endswith(f"### Instruction:\nWhy?\n\nAnswer format: {format}\n\n### Response:\n")
    assert found.task == "piqa" and "### Input" not in found.prompt


def test_an_input_stands_in_the_prompt():
    found = question({**record(0), "input": "it was night"}, "here")
    assert "paired with an input" in found.prompt and "### Input:\nit was night\n\n### Response:\n" in found.prompt


BAD = {
    "no record": ("text", "expected a record with instruction"),
    "no answer": ({k: v for k, v in record(0).items() if k != "answer"}, "no 'answer', or it is empty"),
    "an empty output": ({**record(0), "output": ""}, "no 'output', or it is empty"),
    "an answer of another kind": ({**record(0), "answer": 1}, "no 'answer', or it is empty or not a text"),
    "no choices": ({**record(0), "instruction": "Why?"}, "does not end with 'Answer format: a/b/...'"),
    "one choice": ({**record(1), "instruction": "Answer format: true"}, "'true' is none of the choices true"),
    "an answer that is no choice": ({**record(0), "answer": "maybe"}, "'maybe' is none of the choices true, false"),
    "an output without it": ({**record(1), "output": "it is so"}, "'it is so' does not hold the answer 'true'"),
}


@pytest.mark.parametrize("bad, message", BAD.values(), ids=BAD)
def test_records_that_are_none(bad, message, tmp_path):
    (tmp_path / "commonsense_170k.json").write_text(json.dumps([record(0), bad]))
    with pytest.raises(ValueError, match=f"commonsense_170k.json, record 1: .*{message}") as error:
        Commonsense(tmp_path).questions("mixed", "train", 10, 0)
    assert "\n" not in str(error.value)


FILES = {
    "no folder": (None, "no such file; Commonsense170k needs it"),
    "no JSON": ("{", "not valid JSON"),
    "no list": ("{}", "expected a list of records, got dict"),
    "empty": ("[]", "no records in it"),
    "too small for a split": (json.dumps([record(0)]), "has no question for the train split"),
}


@pytest.mark.parametrize("content, message", FILES.values(), ids=FILES)
def test_files_that_are_none(content, message, tmp_path):
    if content is not None:
        (tmp_path / "commonsense_170k.json").write_text(content)
    with pytest.raises(ValueError, match=f"commonsense_170k.json.*{message}") as error:
        Commonsense(tmp_path).questions("mixed", "train", 10, 0)
    assert "\n" not in str(error.value)


def test_unknown_names(folder):
    corpus = Commonsense(folder)
    with pytest.raises(ValueError, match="unknown commonsense task 'bolq'; did you mean 'boolq'?"):
        corpus.questions("bolq", "test", 1, 0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        corpus.questions("boolq", "dev", 1, 0)
    with pytest.raises(ValueError, match="test sets are by task"):
        corpus.questions("mixed", "test", 1, 0)
    with pytest.raises(ValueError, match="piqa/test.json: no such file"):
        corpus.questions("piqa", "test", 1, 0)


def test_train_and_val_are_apart_and_the_same_every_time(folder):
    corpus, other = Commonsense(folder), Commonsense(folder)
    train, val = (corpus.questions("mixed", split, 10_000, 0) for split in ("train", "val"))
    assert len(train) == 198 and len(val) == 2
    assert train == other.questions("mixed", "train", 10_000, 0)
    assert corpus.questions("mixed", "train", 5, 1) != corpus.questions("mixed", "train", 5, 2)
    assert set(corpus.questions("mixed", "val", 10_000, 9)) == set(val)
    assert {one.task for one in corpus.questions("boolq", "test", 3, 0)} == {"boolq"}


def test_what_is_read():
    tasks = CausalRunConfig().tasks
    mixed, by_task = Commonsense("."), Commonsense(".", by_task=True)
    assert mixed.sources(tasks, "train") == ("mixed",) == mixed.sources(tasks, "val")
    assert mixed.sources(tasks, "test") == tasks == by_task.sources(tasks, "train")


def test_the_configuration_names_every_task():
    from metalora_papers.metatt.commonsense import TASKS

    assert CausalRunConfig().tasks == TASKS


def test_without_a_folder_the_publishers_files_are_read_through_datasets(monkeypatch):
    """No network here: what `datasets` would be asked for, and what a failure of it says."""
    import metalora_papers.metatt.commonsense as module

    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(kind, *, data_files, split):
        asked.append((kind, data_files.removeprefix(module.SOURCE), split))
        if "piqa" in data_files:
            raise ConnectionError("no network\nsecond line")
        return datasets.Dataset.from_list([record(k) for k in range(3)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(module, "_questions", module._questions.__wrapped__)
    assert len(Commonsense().questions("boolq", "test", 9, 0)) == 3
    assert len(Commonsense().questions("mixed", "train", 9, 0)) == 2
    with pytest.raises(ValueError, match=r"piqa/test.json: could not be read \(ConnectionError: no network\); give a"):
        Commonsense().questions("piqa", "test", 9, 0)
    assert asked[:2] == [
        ("json", "/dataset/boolq/test.json", "train"), ("json", "/ft-training_set/commonsense_170k.json", "train"),
    ]  # fmt: skip
