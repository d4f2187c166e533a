"""GLUE, from a folder of its TSV files or from the Hub through `datasets`."""

import csv
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metalora._util.suggest import check_choice
from metalora_papers.metatt.text_corpus import SPLITS, TextExamples

HUB_NAME = "nyu-mll/glue"
VAL_SHARE, VAL_SEED = 0.1, 7


@dataclass(frozen=True)
class GlueTask:
    """Where a task's texts and labels stand: folder and columns of the TSV files, names of the Hub's columns.

    `labels` in the order of their numbers; empty for scores. `headless` files have column numbers instead of names.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    hub: tuple[str, ...]
    labels: tuple[str, ...] = ("0", "1")
    dev: str = "dev"
    headless: bool = False


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": GlueTask("CoLA", ("3",), "1", ("sentence",), headless=True),
    "sst2": GlueTask("SST-2", ("sentence",), "label", ("sentence",)),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", ("sentence1", "sentence2")),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", ("question1", "question2")),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", ("sentence1", "sentence2"), labels=()),
    "mnli": GlueTask(
        "MNLI", ("sentence1", "sentence2"), "gold_label", ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"), "dev_matched",
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ("question", "sentence"), ENTAILMENT),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", ("sentence1", "sentence2"), ENTAILMENT),
}  # fmt: skip
Rows = tuple[tuple[tuple[str, ...], float], ...]  # (texts, label) by example


class Glue:
    """The tasks of GLUE; train is parted 90/10 into train and val, the published dev set is test.

    root  a folder with CoLA/train.tsv, CoLA/dev.tsv, ...; None: the Hub. ValueError: a file or column is missing.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = str(root) if root is not None else None

    def classes(self, task: str) -> int:
        """The number of labels of a task, 0 for scores; ValueError for an unknown one."""
        check_choice("GLUE task", task, tuple(TASKS))
        return len(TASKS[task].labels)

    def examples(self, task: str, split: str, n: int, seed: int) -> TextExamples:
        """At most n examples of a split in an order of the seed; ValueError if it is empty or has one label only."""
        check_choice("GLUE task", task, tuple(TASKS))
        check_choice("split", split, SPLITS)
        rows = _rows(self.root, task, "test" if split == "test" else "train")
        if split != "test":
            order = random.Random(VAL_SEED).sample(range(len(rows)), len(rows))
            cut = round(VAL_SHARE * len(rows))
            rows = tuple(rows[k] for k in (order[:cut] if split == "val" else order[cut:]))
        drawn = random.Random(f"{task}/{split}/{seed}").sample(rows, min(n, len(rows)))
        if len({label for _, label in drawn}) < 2:
            raise ValueError(f"GLUE task {task!r}: the {split} split has {len(drawn)} examples, all with one label")
        texts, labels = zip(*drawn, strict=True)
        second = tuple(text[1] for text in texts) if len(texts[0]) > 1 else ()
        return TextExamples(tuple(text[0] for text in texts), second, labels)


@cache
def _rows(root: str | None, task: str, split: str) -> Rows:
    return _from_hub(task, split) if root is None else _from_files(Path(root), task, split)


def _from_files(root: Path, task: str, split: str) -> Rows:
    wanted = TASKS[task]
    file = root / wanted.folder / f"{'train' if split == 'train' else wanted.dev}.tsv"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; GLUE needs it for task {task!r}")
    with file.open(encoding="utf-8", newline="") as stream:
        lines = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = [str(k) for k in range(len(lines[0]))] if wanted.headless and lines else lines[0] if lines else []
    missing = [name for name in (*wanted.columns, wanted.label) if name not in header]
    if missing:
        raise ValueError(f"{file}: no column {missing[0]!r} (columns: {', '.join(header)})")
    places, label = [header.index(name) for name in wanted.columns], header.index(wanted.label)
    whole = [line for line in lines[0 if wanted.headless else 1 :] if len(line) == len(header)]
    return tuple(
        (tuple(line[k] for k in places), _number(line[label], wanted, file))
        for line in whole
        if line[label] != "-"  # MNLI: the annotators did not agree
    )


def _number(text: str, task: GlueTask, file: Path) -> float:
    if not task.labels:
        return float(text)
    if text not in task.labels:
        raise ValueError(f"{file}: label {text!r}, expected one of {', '.join(task.labels)}")
    return task.labels.index(text)


def _from_hub(task: str, split: str) -> Rows:
    from datasets import load_dataset

    part = "train" if split == "train" else "validation_matched" if task == "mnli" else "validation"
    try:
        found = load_dataset(HUB_NAME, task, split=part)
    except Exception as error:  # of many kinds: no network, a proxy, a full disk
        raise ValueError(
            f"GLUE task {task!r}: the Hub's {HUB_NAME} could not be read ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}); give the folder of its TSV files instead"
        ) from None
    columns = [found[name] for name in TASKS[task].hub]
    return tuple(zip(zip(*columns, strict=True), found["label"], strict=True))
