"""GLUE, from a folder of its TSV files or from the Hub through `datasets`."""

import csv
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from metalora._util.suggest import check_choice
from metalora_papers.content import digest_of_root
from metalora_papers.metatt.text_corpus import SPLITS, TextExamples

HUB_NAME = "nyu-mll/glue"
VAL_SHARE, VAL_SEED = 0.1, 7


@dataclass(frozen=True)
class GlueTask:
    """The places of a task's texts and labels.

    Attributes:
        folder: Folder of its TSV files.
        columns: Their columns of texts.
        label: Their column of labels.
        hub: The Hub's columns of texts.
        labels: The labels in the order of their numbers; empty for scores.
        dev: Name of the file of the published dev set.
        headless: The files have no line of column names; `columns` and `label` are numbers.
        metrics: GLUE's metrics of the task that tables show, by their names in a row; the first judges it.
    """

    folder: str
    columns: tuple[str, ...]
    label: str
    hub: tuple[str, ...]
    labels: tuple[str, ...] = ("0", "1")
    dev: str = "dev"
    headless: bool = False
    metrics: tuple[str, ...] = ("accuracy",)


ENTAILMENT = ("entailment", "not_entailment")
WITH_F1 = ("accuracy", "f1")
TASKS = {
    "cola": GlueTask("CoLA", ("3",), "1", ("sentence",), headless=True, metrics=("matthews",)),
    "sst2": GlueTask("SST-2", ("sentence",), "label", ("sentence",)),
    "mrpc": GlueTask(
        "MRPC", ("#1 String", "#2 String"), "Quality", ("sentence1", "sentence2"), metrics=WITH_F1,
    ),
    "qqp": GlueTask(
        "QQP", ("question1", "question2"), "is_duplicate", ("question1", "question2"), metrics=WITH_F1,
    ),
    "stsb": GlueTask(
        "STS-B", ("sentence1", "sentence2"), "score", ("sentence1", "sentence2"), (), metrics=("spearman", "pearson"),
    ),
    "mnli": GlueTask(
        "MNLI", ("sentence1", "sentence2"), "gold_label", ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"), "dev_matched",
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ("question", "sentence"), ENTAILMENT),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", ("sentence1", "sentence2"), ENTAILMENT),
}  # fmt: skip
Example = tuple[tuple[str, ...], float]  # (texts, label)
Rows = tuple[Example, ...]


class Glue:
    """The tasks of GLUE; the published training set is parted 90/10 into train and val, the published dev set is test.

    Args:
        root: A folder with CoLA/train.tsv, CoLA/dev.tsv and so on; None for the Hub.
    """

    def __init__(self, root: str | Path | None = None):
        self.root = str(root) if root is not None else None

    def classes(self, task: str) -> int:
        """Return the number of labels of a task, 0 for scores; ValueError for an unknown task."""
        check_choice("GLUE task", task, tuple(TASKS))
        return len(TASKS[task].labels)

    def examples(self, task: str, split: str, n: int, seed: int) -> TextExamples:
        """Draw at most n examples of a split.

        Args:
            task: A task of `TASKS`.
            split: "train", "val" or "test".
            n: Number of examples, if the split has as many.
            seed: Seed of their choice and order.

        Returns:
            The examples.

        Raises:
            ValueError: An unknown task or split, a missing file or column, a split that is empty or has a single label.
        """
        check_choice("GLUE task", task, tuple(TASKS))
        check_choice("split", split, SPLITS)
        rows = self._rows_of(task, split)
        # A seed that is a text: the same draw on every machine, and another one for every task and split.
        drawn = random.Random(f"{task}/{split}/{seed}").sample(rows, min(n, len(rows)))
        if len({label for _, label in drawn}) < 2:
            raise ValueError(f"GLUE task {task!r}: the {split} split has {len(drawn)} examples, all with one label")
        texts, labels = zip(*drawn, strict=True)
        first = tuple(text[0] for text in texts)
        has_pairs = len(texts[0]) > 1
        second = tuple(text[1] for text in texts) if has_pairs else ()
        return TextExamples(first, second, labels)

    def _rows_of(self, task: str, split: str) -> Rows:
        """Return all examples of a split."""
        if split == "test":
            return _rows(self.root, task, "test", digest_of_root(self.root))  # GLUE's own test set has no labels
        rows = _rows(self.root, task, "train", digest_of_root(self.root))
        order = random.Random(VAL_SEED).sample(range(len(rows)), len(rows))
        n_val = round(VAL_SHARE * len(rows))
        chosen = order[:n_val] if split == "val" else order[n_val:]
        return tuple(rows[index] for index in chosen)


@cache
def _rows(root: str | None, task: str, split: str, content: str) -> Rows:
    """Return the rows of a split; other contents of the files are read anew."""
    return _from_hub(task, split) if root is None else _from_files(Path(root), task, split)


def _from_files(root: Path, task_name: str, split: str) -> Rows:
    """Read a published TSV file; ValueError if it or a column is missing."""
    task = TASKS[task_name]
    file = root / task.folder / f"{'train' if split == 'train' else task.dev}.tsv"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; GLUE needs it for task {task_name!r}")
    with file.open(encoding="utf-8", newline="") as stream:
        # The texts hold single quotation marks: a reader that takes them as quotes would join lines.
        lines = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    header, body = _header_and_body(lines, task.headless)
    missing = [name for name in (*task.columns, task.label) if name not in header]
    if missing:
        raise ValueError(f"{file}: no column {missing[0]!r} (columns: {', '.join(header)})")
    text_columns = [header.index(name) for name in task.columns]
    label_column = header.index(task.label)
    examples = []
    for line in body:
        is_complete = len(line) == len(header)  # some published lines are cut short
        # "-" in MNLI: the annotators did not agree.
        if is_complete and line[label_column] != "-":
            texts = tuple(line[column] for column in text_columns)
            examples.append((texts, _number(line[label_column], task, file)))
    return tuple(examples)


def _header_and_body(lines: list[list[str]], headless: bool) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, "0", "1", ... for a file without names, and the other lines."""
    if not lines:
        return [], []
    if headless:
        return [str(column) for column in range(len(lines[0]))], lines
    return lines[0], lines[1:]


def _number(text: str, task: GlueTask, file: Path) -> float:
    """Return the number of a label, or the score of a task without labels."""
    if not task.labels:
        return float(text)
    if text not in task.labels:
        raise ValueError(f"{file}: label {text!r}, expected one of {', '.join(task.labels)}")
    return task.labels.index(text)


def _from_hub(task: str, split: str) -> Rows:
    """Read a split through `datasets`; ValueError, in one line, if that does not work."""
    from datasets import load_dataset

    dev = "validation_matched" if task == "mnli" else "validation"
    part = "train" if split == "train" else dev
    try:
        table = load_dataset(HUB_NAME, task, split=part)
    except Exception as error:  # of many kinds: no network, a proxy, a full disk
        reason = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"GLUE task {task!r}: the Hub's {HUB_NAME} could not be read ({type(error).__name__}: {reason}); "
            "give the folder of its TSV files instead"
        ) from None
    columns = [table[name] for name in TASKS[task].hub]
    texts = zip(*columns, strict=True)
    return tuple(zip(texts, table["label"], strict=True))
