"""Folders of learners and of tasks: safetensors for numbers, JSON for what describes them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from metalora._util.digest import tensor_digest, typed_label
from metalora._util.files import replaced_folder, write_atomically
from metalora._util.hub import is_repository, local_folder
from metalora._util.plain_values import parse_json
from metalora._util.processes import one_process_writes
from metalora._util.reading import read_regular, read_text
from metalora._util.shown import cut, shown
from metalora.adapters.adapter import Adapter
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.adapters.conditioning.check import check_condition
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.condition_table import ConditionTable
from metalora.config import from_dict, to_dict
from metalora.io.adapter_file import ADAPTER_FILE, load
from metalora.io.base_samples import check_samples, sample_base
from metalora.io.described_file import Schema, check_entries, check_finite, checksum, is_finite, parse_described
from metalora.io.fingerprint import fingerprint
from metalora.learner.backbone import Backbone, check_no_download, load_backbone, network_of
from metalora.learner.config import LearnerConfig
from metalora.learner.data import TextPreprocessor, preprocessor_from_dict
from metalora.learner.data.text_preprocessing import TOKENIZER_FILES
from metalora.learner.generators import takes_support_condition
from metalora.learner.history import TrainingHistory
from metalora.learner.labels import TaskLabels
from metalora.learner.model_card import model_card
from metalora.learner.readouts import FittedReadout

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner
    from metalora.learner.task import AdaptedTask

LEARNER_FILE, READOUT_FILE = "learner.json", "readout.safetensors"
TASK_FILE = "task.safetensors"
FILES_OF_LEARNER = (LEARNER_FILE, ADAPTER_FILE, READOUT_FILE, "README.md", *TOKENIZER_FILES)
LEARNER_SCHEMA = {
    "backbone": {"name": (str, type(None)), "class": str},
    "config": dict,
    "preprocessor": {"kind": str},
    "stages": [str],
    "fingerprint": str,
    "report": (dict, type(None)),
    "base?": dict,
    "history?": {"losses": list, "accuracies": list},
    "sha256?": str,
}
TASK_SCHEMA = {
    "learner": str,
    "learner_folder": (str, type(None)),
    "labels": {"kind": str, "classes": list, "flat": bool},
    "readout": {"rule": str, "rule_settings": dict, "halved": [str], "kind": str, "count": int, "width": int},
}
MISFITS = (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError)  # of parts that do not fit
LEARNER_FORMAT, TASK_FORMAT, VERSION = "metalora-learner", "metalora-task", 1
READOUT, CONDITION, FACTORS = "readout/", "condition/", "factors/"


# ---- learners --------------------------------------------------------------------------------------------------------
def save_learner(learner: MetaLearner, folder: str | Path) -> Path:
    """Write a learner as a folder, completely or not at all; an older learner of that name is replaced.

    Raises:
        ValueError: Something other than a learner has that name, or the folder could not be written.
    """
    description = {
        "format": LEARNER_FORMAT,
        "version": VERSION,
        "backbone": {"name": learner.backbone.name, "class": type(learner.backbone.model).__name__},
        "config": to_dict(learner.config),
        "preprocessor": learner.backbone.preprocessor.to_dict(),
        "stages": list(learner.features.stages),
        "fingerprint": learner.fingerprint,
        "base": sample_base(learner.backbone.model, (), ()),
        "report": learner.report_.to_dict() if hasattr(learner, "report_") else None,
        "history": learner.history_.to_dict(),
    }
    readout = {name: value.detach().cpu().contiguous() for name, value in learner.trained_modules.state_dict().items()}
    description["sha256"] = checksum(description, readout)
    with one_process_writes() as writes:
        if writes:
            _write_learner(learner, folder, description, readout)
    return Path(folder)


def _write_learner(
    learner: MetaLearner, folder: str | Path, description: dict[str, Any], readout: dict[str, Tensor]
) -> None:
    with replaced_folder(folder, FILES_OF_LEARNER) as temporary:
        if learner.adapter is not None:
            learner.adapter.save(temporary / ADAPTER_FILE)
        write_atomically(temporary / READOUT_FILE, dump_tensors(readout))
        if isinstance(learner.backbone.preprocessor, TextPreprocessor):
            learner.backbone.preprocessor.save_tokenizer(temporary)
        write_atomically(temporary / "README.md", model_card(learner).encode())
        write_atomically(temporary / LEARNER_FILE, json.dumps(description, indent=1).encode())


def read_learner(folder: str | Path) -> dict[str, Any]:
    """Return what a learner's folder says of it.

    Raises:
        ValueError: There is no such folder, or it does not hold a learner of this version.
    """
    return read_json_description(folder, LEARNER_FILE, LEARNER_FORMAT, VERSION, "a learner", LEARNER_SCHEMA)


def read_json_description(
    folder: str | Path, file: str, file_format: str, version: int, noun: str, schema: Schema
) -> dict[str, Any]:
    """Return the description in a folder's JSON file.

    Args:
        folder: The folder.
        file: Name of the file in it.
        file_format: The format that the description must name.
        version: The version of the format that this library reads.
        noun: What messages call what the folder holds, such as "a learner".
        schema: The entries that the description must have, see `check_entries`.

    Raises:
        ValueError: There is no such file, or it is damaged, or of another format or version.
    """
    path = Path(folder) / file
    try:
        description = parse_json(read_text(path), str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: not the folder of {noun} (it has no {file})") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(description, dict) or description.get("format") != file_format:
        raise ValueError(f"{path}: not the description of {noun}")
    if description.get("version") != version:
        raise ValueError(f"{path}: version {shown(description.get('version'))}, this library reads {version}")
    check_entries(description, schema, str(path))
    return description


def load_learner(
    cls: type[MetaLearner],
    folder: str | Path,
    backbone: nn.Module | str | None,
    device: str | torch.device | None,
    allow_download: bool,
    revision: str | None = None,
) -> MetaLearner:
    """Load a learner from a folder, or from a repository on the Hub; see `MetaLearner.from_pretrained`."""
    folder = local_folder(folder, LEARNER_FILE, "a learner", revision)
    description = read_learner(folder)
    readout = read_tensors(folder / READOUT_FILE)
    sha256 = description.get("sha256")  # older folders do not have it
    if sha256 is not None and sha256 != checksum(description, readout):
        raise ValueError(f"{folder}: does not match its checksum: a file was changed after it was written")
    config = from_dict(LearnerConfig, description["config"], f"{folder}/{LEARNER_FILE}: config")
    with unchanged_on_error(network_of(backbone)):
        try:
            learner = cls(_backbone(folder, description, backbone, allow_download), config, device=device)
            _restore(learner, folder, description, readout, allow_download)
        except MISFITS as error:
            raise ValueError(message_with_folder(folder, error)) from None
    return learner


def message_with_folder(folder: Path, error: Exception) -> str:
    """Return the message of an error, with the folder if the message does not name it."""
    if isinstance(error, ValueError) and str(error).startswith(str(folder)):
        return str(error)
    return f"{folder}: its parts do not fit together or to its backbone ({' '.join(str(error).split())[:300]})"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; ValueError if it is damaged, or a number in it is not finite."""
    try:
        tensors: dict[str, Tensor] = load_tensors(read_regular(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read ({cut(str(error))})") from None
    check_finite(tensors, path)
    return tensors


def _restore(
    learner: MetaLearner, folder: Path, description: dict[str, Any], readout: dict[str, Tensor], allow_download: bool
) -> None:
    """Put the adapter and the readout of a folder into a new learner; ValueError unless it is the saved one."""
    if learner.adapter is not None:
        learner.features.remove()
        learner.adapter.detach()
        learner.adapter = load(learner.backbone.model, folder / ADAPTER_FILE, allow_download=allow_download)
        learner.watch()
    learner.trained_modules.load_state_dict(readout)
    if learner.fingerprint != description["fingerprint"]:
        raise ValueError(f"{folder}: the backbone or a file of the learner is not the one that was saved")
    # Older folders do not have it.
    check_samples(description.get("base", {}), sample_base(learner.backbone.model, (), ()), folder)
    learner.folder = folder
    if description["report"] is not None:
        from metalora.learner.report import Report

        learner.report_ = Report.from_dict(description["report"])
    if "history" in description:  # older folders do not have it
        learner.history_ = TrainingHistory.from_dict(description["history"])


def _backbone(
    folder: Path, description: dict[str, Any], backbone: nn.Module | str | None, allow_download: bool
) -> Backbone:
    name = description["backbone"]["name"]
    if backbone is None and name is None:
        raise ValueError(
            f"{folder}: its backbone, a {description['backbone']['class']}, has no name: pass it as backbone="
        )
    if backbone is None and not allow_download:
        check_no_download(name, folder)
    preprocessor = preprocessor_from_dict(description["preprocessor"], folder)
    loaded = load_backbone(name if backbone is None else backbone, preprocessor=preprocessor)
    loaded.name = name if backbone is None or not isinstance(backbone, str) else backbone
    return loaded


def learner_fingerprint(learner: MetaLearner) -> str:
    """Hash the backbone's weights, the adapter, the readout, the stages and the preparation of inputs: 32 digits."""
    model, adapter = learner.backbone.model, learner.adapter
    weighted = [path for path, module in model.named_modules() if isinstance(getattr(module, "weight", None), Tensor)]
    paths = weighted if adapter is None else list(adapter.targets)
    tensors = {name: value for name, value in learner.trained_modules.state_dict().items()}
    if adapter is not None:
        tensors |= {f"adapter/{name}": value for name, value in (adapter.learned | adapter.kept_frozen).items()}
        tensors |= {f"biases/{path}": value for path, value in adapter.bias_changes.items()}
        if adapter.conditioner is not None:
            tensors |= {f"mapping/{name}": value for name, value in adapter.conditioner.state_dict().items()}
    prefix = json.dumps([fingerprint(model, paths), learner.features.stages, learner.backbone.preprocessor.to_dict()])
    return tensor_digest([(typed_label(name, value), value) for name, value in sorted(tensors.items())], prefix)[:32]


# ---- tasks -----------------------------------------------------------------------------------------------------------
def save_task(task: AdaptedTask, folder: str | Path, max_bytes: int | None) -> Path:
    """Write a task as a folder with one file; see `AdaptedTask.save_pretrained`."""
    path = Path(folder)
    _write_task(path, dump_task(task, max_bytes, _relative(task.learner.folder, path), path))
    return path


def save_task_without_place(task: AdaptedTask, folder: Path) -> None:
    """Write a task as a folder that does not say where its learner is; see `AdaptedTask.push_to_hub`."""
    _write_task(folder, dump_task(task, None, None, "task"))


def _write_task(folder: Path, content: bytes) -> None:
    with replaced_folder(folder, [TASK_FILE]) as temporary:
        write_atomically(temporary / TASK_FILE, content)


def dump_task(
    task: AdaptedTask,
    max_bytes: int | None,
    learner_folder: str | None,
    place: str | Path,
    fingerprint: str | None = None,
) -> bytes:
    """Return the content of a task's file.

    Args:
        task: The task.
        max_bytes: Largest size of its readout; it is made compact if it needs more.
        learner_folder: Where the learner is, relative to the folder of the task.
        place: How messages call the task.
        fingerprint: The fingerprint of the learner; None: it is computed.

    Raises:
        ValueError: A number is not finite, there is no readout that small, or the learner was trained since.
    """
    task.check_learner()
    readout = task.readout if max_bytes is None else task.readout.compact(max_bytes)
    tensors = {READOUT + name: value for name, value in readout.tensors().items()}
    condition = task.condition
    if condition is not None:
        tensors |= {CONDITION + key: value for key, value in condition.values.items()}
    if task.factors is not None:
        tensors |= {FACTORS + key: value for key, value in task.factors.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    _check_finite(tensors, place)
    description: dict[str, Any] = {
        "format": TASK_FORMAT,
        "version": VERSION,
        "learner": task.learner.fingerprint if fingerprint is None else fingerprint,
        "learner_folder": learner_folder,
        "labels": task.labels.to_dict(),
        "readout": readout.settings(),
    }
    description["sha256"] = checksum(description, tensors)
    return dump_tensors(tensors, {"metalora": json.dumps(description)})


def _relative(learner: Path | None, folder: Path) -> str | None:
    return None if learner is None else os.path.relpath(learner.absolute(), folder.absolute())


def read_task(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of a task.

    Args:
        folder: The folder of the task, or its file.

    Raises:
        ValueError: There is no such file, or it is damaged or not complete, or of another version, or a number is not
            finite.
    """
    path = Path(folder)
    path = path / TASK_FILE if path.is_dir() else path
    try:
        content = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{folder}: no task there (no {TASK_FILE})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    return parse_task(content, path)


def parse_task(content: bytes, place: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description and the tensors of the content of a task's file; ValueError as `read_task`."""
    description, tensors = parse_described(place, content, TASK_FORMAT, VERSION, "task file")
    check_entries(description, TASK_SCHEMA, str(place))
    _check_finite(tensors, place)
    return description, tensors


def _check_finite(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Raise a ValueError if a number of a task is not finite."""
    for name, value in tensors.items():
        # The only item of a support set has no nearest other item: the distance is infinite.
        is_wrong = value.isnan().any() if name == READOUT + "nearest" else not is_finite(value)
        if is_wrong:
            raise ValueError(f"{path}: {name!r} has numbers that are not finite")


def load_task(
    cls: type[AdaptedTask],
    folder: str | Path,
    learner: MetaLearner | None,
    allow_download: bool,
    revision: str | None = None,
) -> AdaptedTask:
    """Load a task, and its learner if it is not given; see `AdaptedTask.from_pretrained`."""
    if learner is None and is_repository(folder):
        raise ValueError(f"{folder}: no such folder here, and for a task on the Hub pass its learner (learner=...)")
    folder = local_folder(folder, TASK_FILE, "a task", revision)
    description, tensors = read_task(folder)
    if learner is None:
        learner = _learner_of(folder, description, allow_download)
    return make_task(cls, description, tensors, learner, folder)


def make_task(
    cls: type[AdaptedTask],
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    learner: MetaLearner,
    place: str | Path,
    fingerprint: str | None = None,
    conditions: ConditionTable | None = None,
) -> AdaptedTask:
    """Return the task that a file describes.

    Args:
        cls: The class of the task.
        description: What the file says of it.
        tensors: Its tensors.
        learner: Its learner.
        place: How messages call the task.
        fingerprint: The fingerprint of the learner; None: it is computed.
        conditions: A table that keeps the condition; None: the task does.

    Raises:
        ValueError: Another learner made the task, or its parts do not fit together.
    """
    fingerprint = learner.fingerprint if fingerprint is None else fingerprint
    if fingerprint != description["learner"]:
        raise ValueError(
            f"{place}: made by another learner (fingerprint {description['learner']}, this one has {fingerprint})"
        )
    # Copies: tensors that were read from bytes are views, of which one would keep the bytes of all.
    tensors = {name: value.to(learner.device, copy=True) for name, value in tensors.items()}
    parts = {prefix: _with_prefix(tensors, prefix) for prefix in (READOUT, CONDITION, FACTORS)}
    for name in tensors:
        if not name.startswith(tuple(parts)):
            raise ValueError(f"{place}: tensor {shown(name)} is not expected")
    condition = None
    if parts[CONDITION]:
        maker = None if learner.adapter is None else learner.adapter.as_maker()
        condition = Condition(parts[CONDITION], torch.zeros(1, 0), torch.zeros(()), maker)
    try:
        _check_values(learner.adapter, condition, parts[FACTORS])
        labels = TaskLabels.from_dict(description["labels"])
        readout = FittedReadout.from_tensors(parts[READOUT], description["readout"])
        _try_readout(readout, labels)
    except MISFITS as error:
        raise ValueError(f"{place}: its parts do not fit together or to its learner ({error})") from None
    stored = condition if condition is None or conditions is None else conditions.keep(condition)
    return cls(learner, readout, labels, stored, parts[FACTORS] or None)


def _check_values(adapter: Adapter | None, condition: Condition | None, factors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless the condition and the factors of a task are those that its adapter takes."""
    takes = adapter is not None and takes_support_condition(adapter)
    if takes != (condition is not None):
        raise ValueError(f"{'no' if takes else 'a'} condition, expected {'one' if takes else 'none'} for this adapter")
    if adapter is not None and condition is not None:
        check_condition(adapter, condition)
    own = adapter.learned if factors and adapter is not None else {}
    for key, value in factors.items():
        if key not in own or value.shape != own[key].shape:
            expected = f"shape {tuple(own[key].shape)}" if key in own else "none of this name"
            raise ValueError(f"factor {key!r} has shape {tuple(value.shape)}, expected {expected}")


@torch.no_grad()
def _try_readout(readout: FittedReadout, labels: TaskLabels) -> None:
    """Raise a ValueError, or what torch raises, unless a readout can predict the labels of a task."""
    query = torch.zeros(1, readout.scaling.width).to(readout.support)
    logits, novelty, _ = readout.outputs(query)
    count, items = readout.targets.count, len(readout.targets.matrix)
    if (
        logits.shape != (1, count)
        or novelty.shape != (1,)
        or (labels.kind == "classes" and len(labels.classes) != count)
    ):
        raise ValueError(f"a readout of {tuple(logits.shape)} logits, expected those of {count} outputs")
    for name, value in (("leave_one_out", readout.leave_one_out), ("nearest", readout.nearest)):
        if value is not None and len(value) != items:
            raise ValueError(f"{name!r} of {len(value)} items, expected {items}")


def _learner_of(folder: str | Path, description: dict[str, Any], allow_download: bool) -> MetaLearner:
    from metalora.learner.learner import MetaLearner

    if description["learner_folder"] is None:
        raise ValueError(f"{folder}: does not say where its learner is; pass the learner")
    # An absolute path, which is never the name of a repository on the Hub.
    path = (Path(folder) / description["learner_folder"]).absolute()
    return MetaLearner.from_pretrained(path, allow_download=allow_download)


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
