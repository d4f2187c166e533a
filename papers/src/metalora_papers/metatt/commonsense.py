"""Commonsense170k (Hu et al. 2023, LLM-Adapters): eight multiple-choice tasks as instructions with an answer."""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from metalora._util.suggest import check_choice

TASKS = (
    "boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa",
)  # fmt: skip
MIXED = "mixed"  # the training file holds all tasks and does not say which: four of them have one wording
TRAIN_FILE = "commonsense_170k.json"
SOURCE = "https://raw.githubusercontent.com/AGI-Edgerunners/LLM-Adapters/main"
VAL_SHARE, VAL_SEED = 0.01, 7
FIELDS = ("instruction", "input", "output", "answer")
FORMAT = re.compile(r"Answer format:\s*(\S.*?)\s*$", re.IGNORECASE)
PROMPT = (
    "Below is an instruction that describes a task{more}. Write a response that appropriately completes the request.\n"
    "\n### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


@dataclass(frozen=True)
class Question:
    """A prompt, the responses that may follow it, the number of the right one, and the task (or "mixed")."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    task: str


class Commonsense:
    """The training file or files and the eight test sets.

    root     a folder with commonsense_170k.json and <task>/test.json; None: the publisher's files, through `datasets`
    by_task  train on <task>/train.json instead of the one file, so that the task of every question is known
    """

    def __init__(self, root: str | Path | None = None, *, by_task: bool = False):
        self.root, self.by_task = None if root is None else str(root), by_task

    def questions(self, task: str, split: str, n: int, seed: int) -> tuple[Question, ...]:
        """At most n questions of a split in an order of the seed (of `mixed`: from the one training file).

        A hundredth of what is there to train on, drawn once, is val. ValueError: an unknown task or split, a file that
        is missing, damaged or has nothing for the split, a record without its answer.
        """
        check_choice("commonsense task", task, (*TASKS, MIXED))
        check_choice("split", split, ("train", "val", "test"))
        if task == MIXED and split == "test":
            raise ValueError("commonsense: the mixed file is for training; test sets are by task")
        name = TRAIN_FILE if task == MIXED else f"{task}/{'test' if split == 'test' else 'train'}.json"
        found = _questions(self.root, name, task)
        if split != "test":
            order = random.Random(VAL_SEED).sample(range(len(found)), len(found))
            cut = max(1, round(VAL_SHARE * len(found)))
            found = tuple(found[k] for k in (order[:cut] if split == "val" else order[cut:]))
        if not found:
            raise ValueError(f"commonsense: {name} has no question for the {split} split")
        return tuple(random.Random(f"{task}/{split}/{seed}").sample(found, min(n, len(found))))

    def sources(self, tasks: Sequence[str], split: str) -> tuple[str, ...]:
        """What is read for a split: the tasks' own files, or the mixed one."""
        return tuple(tasks) if split == "test" or self.by_task else (MIXED,)


def question(record: Any, where: str, task: str = MIXED) -> Question:
    """A record as a prompt and its possible responses; ValueError, with `where` it is, for what is no such record.

    The choices are those of "Answer format: a/b/c" at the end of the instruction; a response is the record's output
    with a choice in place of the answer ("the correct answer is b").
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a record with {', '.join(FIELDS)}, got {record!r:.60}")
    texts = {name: record.get(name, "" if name == "input" else None) for name in FIELDS}
    missing = [name for name, text in texts.items() if not isinstance(text, str) or not (text or name == "input")]
    if missing:
        raise ValueError(f"{where}: no {missing[0]!r}, or it is empty or no text")
    instruction, context, output = (str(texts[name]) for name in ("instruction", "input", "output"))
    named = FORMAT.search(instruction)
    if named is None:
        raise ValueError(f"{where}: its instruction does not end with 'Answer format: a/b/...'")
    answers = [answer.strip() for answer in named[1].split("/")]
    answer = str(texts["answer"]).strip()
    if answer not in answers or len(set(answers)) < 2:
        raise ValueError(f"{where}: the answer {answer!r} is none of the choices {', '.join(answers)}")
    before, found, after = output.rpartition(answer)
    if not found:
        raise ValueError(f"{where}: its output {output!r:.60} does not hold the answer {answer!r}")
    choices = tuple(f"{before}{other}{after}" for other in answers)
    return Question(prompt(instruction, context), choices, answers.index(answer), task)


def prompt(instruction: str, context: str = "") -> str:
    """The Alpaca template that LLM-Adapters trains with, without the indentation of its source code."""
    more = ", paired with an input that provides further context" if context else ""
    return PROMPT.format(more=more, instruction=instruction, input=f"### Input:\n{context}\n\n" if context else "")


@cache
def _questions(root: str | None, name: str, task: str) -> tuple[Question, ...]:
    records, where = (_from_source(name), name) if root is None else (_from_file(Path(root) / name), Path(root) / name)
    if not records:
        raise ValueError(f"{where}: no records in it")
    return tuple(question(record, f"{where}, record {k}", task) for k, record in enumerate(records))


def _from_file(file: Path) -> list[Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file}: no such file; Commonsense170k needs it (see LLM-Adapters)") from None
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(found, list):
        raise ValueError(f"{file}: expected a list of records, got {type(found).__name__}")
    return found


def _from_source(name: str) -> list[Any]:
    url = f"{SOURCE}/{'ft-training_set' if name == TRAIN_FILE else 'dataset'}/{name}"
    try:
        from datasets import load_dataset

        return load_dataset("json", data_files=url, split="train").to_list()
    except Exception as error:  # of many kinds: no network, a proxy, a full disk
        said = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"{url}: could not be read ({type(error).__name__}: {said}); give a folder with {name} as data_root instead"
        ) from None
