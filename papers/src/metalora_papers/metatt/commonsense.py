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
from metalora_papers.content import digest_of_root

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
    "Below is an instruction that describes a task{pairing}. "
    "Write a response that appropriately completes the request.\n"
    "\n### Instruction:\n{instruction}\n\n{context_block}### Response:\n"
)


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        prompt: The text before the response.
        choices: The responses that may follow it.
        answer: Index of the right response.
        task: The task, or "mixed".
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    task: str


class Commonsense:
    """The training file or files and the eight test sets.

    Args:
        root: A folder with commonsense_170k.json and <task>/test.json; None for the publisher's files, through
            `datasets`.
        by_task: Train on <task>/train.json instead of the single file, which does not say the task of a question.
    """

    def __init__(self, root: str | Path | None = None, *, by_task: bool = False):
        self.root = None if root is None else str(root)
        self.by_task = by_task

    def questions(self, task: str, split: str, n: int, seed: int) -> tuple[Question, ...]:
        """Draw at most n questions of a split; a hundredth of the training questions, drawn once, is val.

        Args:
            task: A task, or "mixed" for the single training file.
            split: "train", "val" or "test".
            n: Number of questions, if the split has as many.
            seed: Seed of their choice and order.

        Returns:
            The questions.

        Raises:
            ValueError: An unknown task or split, a file that is missing, damaged or has nothing for the split, a record
                without its answer.
        """
        check_choice("commonsense task", task, (*TASKS, MIXED))
        check_choice("split", split, ("train", "val", "test"))
        if task == MIXED and split == "test":
            raise ValueError("commonsense: the mixed file is for training; test sets are by task")
        name = TRAIN_FILE if task == MIXED else f"{task}/{'test' if split == 'test' else 'train'}.json"
        questions = _questions(self.root, name, task, digest_of_root(self.root))
        # The published files have no validation set; a test set is never parted.
        if split != "test":
            order = random.Random(VAL_SEED).sample(range(len(questions)), len(questions))
            n_val = max(1, round(VAL_SHARE * len(questions)))
            chosen = order[:n_val] if split == "val" else order[n_val:]
            questions = tuple(questions[index] for index in chosen)
        if not questions:
            raise ValueError(f"commonsense: {name} has no question for the {split} split")
        return tuple(random.Random(f"{task}/{split}/{seed}").sample(questions, min(n, len(questions))))

    def sources(self, tasks: Sequence[str], split: str) -> tuple[str, ...]:
        """Return what is read for a split: the files of the tasks, or the mixed one."""
        return tuple(tasks) if split == "test" or self.by_task else (MIXED,)


def question(record: Any, location: str, task: str = MIXED) -> Question:
    """Turn a record of the files into a prompt and its possible responses.

    The choices are those of "Answer format: a/b/c" at the end of the instruction. A response is the record's output
    with a choice in place of the answer ("the correct answer is b").

    Args:
        record: A dictionary with the texts `FIELDS`.
        location: File and number of the record, for messages.
        task: The task.

    Returns:
        The question.

    Raises:
        ValueError: Not such a record.
    """
    instruction, context, output, answer = _record_texts(record, location)
    answer_format = FORMAT.search(instruction)
    if answer_format is None:
        raise ValueError(f"{location}: its instruction does not end with 'Answer format: a/b/...'")
    answers = [text.strip() for text in answer_format[1].split("/")]
    answer = answer.strip()
    if answer not in answers or len(set(answers)) < 2:
        raise ValueError(f"{location}: the answer {answer!r} is none of the choices {', '.join(answers)}")
    # The last occurrence: the words of the answer may stand in the sentence before it ("a" does in "answer").
    before, separator, after = output.rpartition(answer)
    if not separator:
        raise ValueError(f"{location}: its output {output!r:.60} does not hold the answer {answer!r}")
    choices = tuple(f"{before}{text}{after}" for text in answers)
    return Question(prompt(instruction, context), choices, answers.index(answer), task)


def _record_texts(record: Any, location: str) -> tuple[str, ...]:
    """Return the texts `FIELDS` of a record; only "input" may be absent or empty."""
    if not isinstance(record, dict):
        raise ValueError(f"{location}: expected a record with {', '.join(FIELDS)}, got {record!r:.60}")
    texts = []
    for name in FIELDS:
        is_optional = name == "input"
        text = record.get(name, "" if is_optional else None)
        if not isinstance(text, str) or not (text or is_optional):
            raise ValueError(f"{location}: no {name!r}, or it is empty or not a text")
        texts.append(text)
    return tuple(texts)


def prompt(instruction: str, context: str = "") -> str:
    """Return the Alpaca template that LLM-Adapters trains with, without the indentation of its source code."""
    # Alpaca has two templates; they differ in this clause and in the block of the input.
    pairing = ", paired with an input that provides further context" if context else ""
    context_block = f"### Input:\n{context}\n\n" if context else ""
    return PROMPT.format(pairing=pairing, instruction=instruction, context_block=context_block)


@cache
def _questions(root: str | None, name: str, task: str, content: str) -> tuple[Question, ...]:
    """Read all questions of a file, in its order; other contents are read anew."""
    if root is None:
        records, location = _from_source(name), name
    else:
        file = Path(root) / name
        records, location = _from_file(file), str(file)
    if not records:
        raise ValueError(f"{location}: no records in it")
    return tuple(question(record, f"{location}, record {index}", task) for index, record in enumerate(records))


def _from_file(file: Path) -> list[Any]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{file}: no such file; Commonsense170k needs it (see LLM-Adapters)") from None
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(records, list):
        raise ValueError(f"{file}: expected a list of records, got {type(records).__name__}")
    return records


def _from_source(name: str) -> list[Any]:
    url = f"{SOURCE}/{'ft-training_set' if name == TRAIN_FILE else 'dataset'}/{name}"
    try:
        from datasets import load_dataset

        return load_dataset("json", data_files=url, split="train").to_list()
    except Exception as error:  # of many kinds: no network, a proxy, a full disk
        reason = str(error).splitlines()[0] if str(error) else ""
        raise ValueError(
            f"{url}: could not be read ({type(error).__name__}: {reason}); "
            f"give a folder with {name} as data_root instead"
        ) from None
