"""The work of `metalora inspect PATH`: say in words what a file or a folder is, and what is in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalora.learner import TaskPool

SHOWN = 8  # more names than this are cut off in a sentence
ROW_KEYS = {"key", "suite", "results"}  # what every row of results has


@dataclass(frozen=True)
class Finding:
    """What a file or a folder is.

    Attributes:
        kind: One word or two, such as "adapter file".
        sentences: What a person wants to know of it.
        facts: The same as values, for JSON.
    """

    kind: str
    sentences: Sequence[str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain values."""
        return {"kind": self.kind, "sentences": list(self.sentences), **self.facts}


def inspect_path(path: Path, **columns: Any) -> Finding:
    """Say what a file or a folder is.

    Args:
        path: An adapter file, a condition file, a folder of a learner, of a task, of a fine-tuned model, of a search or
            of a LoRA, a file of results, a table, a folder of pictures, or any other safetensors file.
        **columns: How a table is read: `images`, `image_column`, `text_column` of `read_tasks`.

    Raises:
        ValueError: There is no such path, or it is damaged, or nothing that this library reads.
    """
    if path.is_dir():
        return _inspect_folder(path)
    if path.suffix == ".safetensors":
        return _inspect_tensors(path)
    if path.suffix == ".jsonl" and _is_results(path):
        return _inspect_results(path)
    return _inspect_inputs(path, **columns)


# ---- folders ---------------------------------------------------------------------------------------------------------
def _inspect_folder(folder: Path) -> Finding:
    from metalora.io.lora.peft_config import CONFIG
    from metalora.learner.finetuning_config import DESCRIPTION_FILE
    from metalora.learner.saving import LEARNER_FILE, TASK_FILE
    from metalora.learner.sweeps.config import DESCRIPTION_FILE as SWEEP_FILE

    readers: dict[str, Callable[[Path], Finding]] = {
        LEARNER_FILE: _inspect_learner,
        TASK_FILE: _inspect_task,
        DESCRIPTION_FILE: _inspect_finetuned,
        SWEEP_FILE: _inspect_sweep,
        CONFIG: _inspect_lora,
    }
    for marker, reader in readers.items():
        if (folder / marker).is_file():
            return reader(folder)
    return _inspect_inputs(folder)


def _inspect_learner(folder: Path) -> Finding:
    from metalora.learner.report import Report
    from metalora.learner.saving import read_learner

    description = read_learner(folder)
    config, preprocessor = description["config"], description["preprocessor"]
    backbone = description["backbone"]["name"] or f"a {description['backbone']['class']} that has no name"
    sentences = [
        f"{folder} is a learner: the backbone {backbone} {_adapter_words(config['adapter'])}.",
        f"Its inputs are {_modality(preprocessor)}; a support set makes the readout {config['readout']}.",
        f"It reads {len(description['stages'])} stages; fingerprint {description['fingerprint']}.",
    ]
    if description["report"] is not None:
        sentences.append(Report.from_dict(description["report"]).verdict)
    else:
        sentences.append("It was not compared with its peers.")
    return Finding("learner", sentences, description)


def _adapter_words(adapter: Mapping[str, Any] | None) -> str:
    if adapter is None:
        return "without an adapter"
    return f"with the adapter {adapter['method']} of rank {adapter['rank']}"


def _modality(preprocessor: Mapping[str, Any]) -> str:
    kind = preprocessor["kind"]
    if kind == "images":
        return "pictures of {} x {} pixels".format(*preprocessor["size"])
    return "texts" if kind == "text" else "arrays of numbers"


def _inspect_task(folder: Path) -> Finding:
    from metalora.learner.saving import read_task

    description, tensors = read_task(folder)
    labels, readout = description["labels"], description["readout"]
    classes = labels["classes"]
    what = {"numbers": "numbers", "multilabel": f"any of {_names(classes)}", "classes": f"one of {_names(classes)}"}
    size = sum(tensor.nbytes for tensor in tensors.values())
    learner = description["learner_folder"]
    sentences = [
        f"{folder} is a task: it predicts {what[labels['kind']]}.",
        f"Its {len(tensors)} tensors take {size:,} bytes; the readout is {readout.get('name', 'not named')}.",
        f"It belongs to the learner {description['learner']}"
        + ("." if learner is None else f", which was in {learner} (from here)."),
    ]
    return Finding("task", sentences, {**description, "bytes": size})


def _inspect_sweep(folder: Path) -> Finding:
    from metalora._util.plain_values import parse_json
    from metalora._util.reading import read_text
    from metalora.learner.sweeps.config import DESCRIPTION_FILE
    from metalora.learner.sweeps.writing import RESULT

    description = parse_json(read_text(folder / DESCRIPTION_FILE), str(folder / DESCRIPTION_FILE))
    sentences = [f"{folder} is a search for the best {description['verb']} of the backbone {description['backbone']}."]
    if not (folder / RESULT).is_file():
        sentences.append("It has no result yet.")
        return Finding("sweep", sentences, description)
    result = parse_json(read_text(folder / RESULT), str(folder / RESULT))
    sentences += [f"{len(result['trials'])} trials have ended.", result["verdict"]]
    return Finding("sweep", sentences, description | {"result": result})


def _inspect_finetuned(folder: Path) -> Finding:
    from metalora.learner.finetuning_files import read_description

    description = read_description(folder)
    scores = description["scores"]
    backbone = description["backbone"] or f"a {description['class']} that has no name"
    sentences = [
        f"{folder} is a fine-tuned model: the backbone {backbone}, method {description['method']}.",
        f"It predicts one of {_names(description['classes'])} for {_modality(description['preprocessor'])}.",
        f"On {scores['inputs']} inputs that were not trained on: accuracy {scores['accuracy']:.3f}, "
        f"macro-F1 {scores['macro_f1']:.3f} (step {scores['step']} of {description['config']['steps']}).",
    ]
    return Finding("fine-tuned model", sentences, description)


def _inspect_lora(folder: Path) -> Finding:
    from metalora.io.lora.source import read_folder

    lora = read_folder(folder)
    ranks = {name: scale.rank for name, scale in lora.scales.items()}
    listed = ", ".join(f"rank {rank} at {count}" for rank, count in sorted(Counter(ranks.values()).items()))
    size = lora.file.stat().st_size
    sentences = [
        f"{folder} is a LoRA in PEFT's format: {len(ranks)} targets ({listed}), {size:,} bytes.",
        f"Its targets are {_names(list(ranks))}.",
    ]
    return Finding("LoRA folder", sentences, {"ranks": ranks, "bytes": size})


# ---- files -----------------------------------------------------------------------------------------------------------
def _inspect_tensors(path: Path) -> Finding:
    from metalora.io.adapter_file import FORMAT
    from metalora.io.condition_file import is_condition
    from metalora.io.described_file import description_in
    from metalora.learner.saving import TASK_FORMAT

    try:
        description = description_in(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if is_condition(description):
        return _inspect_condition(path)
    if description.get("format") == TASK_FORMAT:
        return _inspect_task(path)
    if description.get("format") == FORMAT:
        return _inspect_adapter(path)
    return _inspect_checkpoint(path)


def _inspect_adapter(path: Path) -> Finding:
    from metalora.io.adapter_file import read

    description, tensors = read(path)
    config = description["config"]
    kinds = Counter(target["kind"] for target in description["targets"].values())
    listed = " and ".join(f"{count} {kind}" for kind, count in kinds.items())
    sentences = [
        f"{path} is an adapter file: {config['method']}, rank {config['rank']}, {description['num_params']:,} learned "
        f"numbers, {path.stat().st_size:,} bytes.",
        f"It adapts {len(description['targets'])} layers ({listed}) of a {description['base']['class']}: "
        f"{_names(list(description['targets']))}.",
        _update_words(config["tasks"], generated=description["feature_size"] is not None),
    ]
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return Finding("adapter file", sentences, {**description, "bytes": path.stat().st_size, "tensors": shapes})


def _update_words(tasks: int, *, generated: bool) -> str:
    """Say what the update of an adapter depends on, and so what merging takes."""
    if generated:
        by_task = f", for each of its {tasks} tasks" if tasks > 1 else ""
        return f"Its factors are generated from a condition{by_task}: merging or exporting takes a condition file."
    if tasks > 1:
        return f"It has an update for each of its {tasks} tasks: merging takes --task, exporting --task or --all-tasks."
    return "It is static: the same update for every input."


def _inspect_condition(path: Path) -> Finding:
    from metalora.adapters.conditioning.condition import Condition

    condition = Condition.load(path)
    origin = "" if condition.origin is None else f" by adapter {json.loads(condition.origin.record)['adapter']}"
    shapes = {key: list(value.shape) for key, value in condition.values.items()}
    sentences = [
        f"{path} is a condition file: {len(condition)} condition(s) for {len(shapes)} generated factor(s).",
        f"They were made{origin} from {condition.features.shape[-1]} features; mean square of c - c0 "
        f"{float(condition.penalty):.4g}.",
    ]
    return Finding("condition file", sentences, {"values": shapes, "conditions": len(condition)})


def _inspect_checkpoint(path: Path) -> Finding:
    from metalora.io.lora.tensor_files import read_tensors
    from metalora.io.lora.tensor_names import parse_name

    tensors = read_tensors(path, f"{path}: no such file")
    numbers = sum(prod(tensor.shape) for tensor in tensors.values())
    parts = [parse_name(name) for name in tensors]
    is_lora = any(part is not None and part.part != "alpha" for part in parts)
    kind = "LoRA file" if is_lora else "checkpoint"
    sentences = [
        f"{path} is a safetensors file that metalora did not write: {len(tensors)} tensors, {numbers:,} numbers.",
        "Its names are those of a LoRA: `metalora import` reads it if the base is known."
        if is_lora
        else "It looks like plain weights.",
    ]
    return Finding(kind, sentences, {"tensors": len(tensors), "numbers": numbers})


# ---- results ---------------------------------------------------------------------------------------------------------
def _is_results(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and set(first) >= ROW_KEYS


def _inspect_results(path: Path) -> Finding:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            rows.append(_row(line, f"{path}: line {number}"))
    suites = dict(Counter(str(row["suite"]) for row in rows))
    seeds = sorted({row["seed"] for row in rows if row.get("seed") is not None})
    methods = sorted({str(row["config"].get("method")) for row in rows if row.get("config", {}).get("method")})
    sentences = [f"{path} holds {len(rows)} rows of results: {_counted(suites)}."]
    if methods:
        sentences.append(f"Methods: {_names(methods)}.")
    if seeds:
        sentences.append(f"Seeds: {_names(seeds)}.")
    return Finding("results", sentences, {"rows": len(rows), "suites": suites, "methods": methods, "seeds": seeds})


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError(f"{where} is not a complete row") from None
    if not isinstance(row, dict) or not set(row) >= ROW_KEYS:
        raise ValueError(f"{where} is not a row of results (expected the keys {', '.join(sorted(ROW_KEYS))})")
    return row


# ---- inputs ----------------------------------------------------------------------------------------------------------
def _inspect_inputs(path: Path, **columns: Any) -> Finding:
    from metalora.learner import TaskPool, read_tasks
    from metalora.learner.data.pictures import check_file, is_picture_path

    if path.is_file() and is_picture_path(path):
        check_file(path)
        pool = TaskPool([path], name=path.name)
        return Finding("picture", [f"{path} is a picture, which `metalora predict` reads."], _pool_facts(pool))
    pools = read_tasks(path, **columns)
    noun = "folder" if path.is_dir() else "table"
    sentences = [f"{path} is a {noun} that `metalora fit` reads:"]
    for pool in pools:
        sentences += _pool_sentences(pool)
    return Finding(f"{noun} of inputs", sentences, {"pools": [_pool_facts(pool) for pool in pools]})


def _pool_sentences(pool: TaskPool) -> list[str]:
    things = {"images": "pictures", "text": "texts", "arrays": "arrays"}[pool.modality]
    sentences = [f"{pool.name}: {len(pool)} {things}."]
    for name, column in pool.columns.items():
        counts = dict(zip(map(str, column.classes), column.counts().tolist(), strict=True))
        missing = int((column.codes < 0).sum())
        note = f"; {missing} without a label" if missing else ""
        sentences.append(f"  labels {name!r}: {len(column.classes)} classes ({_counted(counts)}){note}")
    if not pool.columns:
        sentences.append("  There are no labels: all notions of a training would be procedural.")
    sentences += [f"  ignored {name!r}: {reason}" for name, reason in pool.ignored.items()]
    return sentences


def _pool_facts(pool: TaskPool) -> dict[str, Any]:
    columns = {
        name: {
            "classes": dict(zip(map(str, column.classes), column.counts().tolist(), strict=True)),
            "missing": int((column.codes < 0).sum()),
        }
        for name, column in pool.columns.items()
    }
    return {
        "name": pool.name,
        "inputs": len(pool),
        "modality": pool.modality,
        "labels": columns,
        "ignored": dict(pool.ignored),
    }


def _names(names: Sequence[Any]) -> str:
    """Return names as a list in words; after the first few comes the number of the others."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def _counted(counts: Mapping[str, int]) -> str:
    return _names([f"{name} {count}" for name, count in counts.items()])
