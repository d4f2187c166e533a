"""What merging and exporting do: the output stays, or an error says why it cannot be done."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from metalora.checkup.hosts import Attached, only_layer
from metalora.checkup.outputs import distance, outputs, tensors_of, tolerance
from metalora.checkup.probing import YES, Call
from metalora.checkup.report import Answer
from metalora.checkup.subject import CRASHES, Subject, in_one_line
from metalora.io.lora.exportable import exportable_layers
from metalora.io.lora.import_ import load_lora


@torch.no_grad()
def merged(
    host: Attached, subject: Subject, live: list[Tensor], calls: Mapping[str, Call]
) -> tuple[Answer, dict[str, Answer]]:
    """Merge, compare the output with the live one, and unmerge.

    Args:
        host: The adapted model.
        subject: The base and its inputs.
        live: The output before merging.
        calls: The first call of each layer before merging.

    Returns:
        The answer for the model, and for each target.
    """
    try:
        host.merge()
    except ValueError as error:
        return Answer("refused", str(error)), _alone(host, host.merge_alone)
    except CRASHES as error:
        return Answer("no", in_one_line(error)), {}
    try:
        after = outputs(host.model, subject.inputs)
        by_target = {path: _same_call(host.layers[path], call) for path, call in calls.items()}
    except CRASHES as error:
        return Answer("no", f"after merging: {in_one_line(error)}"), {}
    finally:
        host.unmerge()
    return _compared(after, subject, live), {path: by_target.get(path, YES) for path in host.layers}


@torch.no_grad()
def exported(host: Attached, subject: Subject, live: list[Tensor]) -> tuple[Answer, dict[str, Answer]]:
    """Export plain LoRA, load it into a fresh copy of the model with PEFT, and compare the outputs.

    Where PEFT is not installed, or computes something else, the LoRA is loaded with `metalora.load_lora`.

    Returns:
        The answer for the model, and for each target.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            host.adapter.export_lora(Path(folder) / "lora")
        except ValueError as error:
            return Answer("refused", str(error)), exportable(host)
        except CRASHES as error:
            return Answer("no", in_one_line(error)), {}
        return _reloaded(Path(folder) / "lora", subject, live), dict.fromkeys(host.layers, YES)


def exportable(host: Attached) -> dict[str, Answer]:
    """Return for each target alone whether a plain LoRA can have it; no numbers are needed for it."""

    def check(path: str) -> None:
        with only_layer(host.adapter, path):
            exportable_layers(host.adapter)

    return _alone(host, check)


def _reloaded(folder: Path, subject: Subject, live: list[Tensor]) -> Answer:
    """Compare the output of a model into which an exported LoRA was loaded with the live output."""
    in_peft = _loaded_by(_load_in_peft, folder, subject, live)
    if in_peft.state == "yes":
        return in_peft
    here = _loaded_by(_load_here, folder, subject, live)
    if here.state == "yes":
        return Answer("yes", f"loaded by metalora.load_lora; in PEFT: {in_peft.reason}")
    return Answer("no", f"in PEFT: {in_peft.reason}; by metalora.load_lora: {here.reason}")


def _load_in_peft(model: nn.Module, folder: Path) -> nn.Module:
    from peft import PeftModel

    loaded: nn.Module = PeftModel.from_pretrained(model, str(folder)).eval()
    return loaded


def _load_here(model: nn.Module, folder: Path) -> nn.Module:
    load_lora(model, folder)
    return model


def _loaded_by(
    load: Callable[[nn.Module, Path], nn.Module], folder: Path, subject: Subject, live: list[Tensor]
) -> Answer:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load(subject.fresh(), folder)
        return _compared(outputs(model, subject.inputs), subject, live)
    except ModuleNotFoundError:
        return Answer("unknown", "it is not installed")
    except CRASHES as error:
        return Answer("no", in_one_line(error))


def _compared(tensors: list[Tensor], subject: Subject, live: list[Tensor]) -> Answer:
    difference = distance(live, tensors)
    if difference <= tolerance(subject.base, live):
        return YES
    return Answer("no", f"the output differs by {difference:.3g}, the update is {distance(subject.base, live):.3g}")


def _same_call(layer: nn.Module, call: Call) -> Answer:
    """Compare what a layer gives for its first call now with what it gave then."""
    now = list(tensors_of(layer(*call.args, **call.kwargs)))
    difference, size = distance(call.output, now), max((float(t.abs().max()) for t in now if t.numel()), default=0)
    allowed = 1e-5 * size
    return YES if difference <= allowed else Answer("no", f"its output differs by {difference:.3g} after merging")


def _alone(host: Attached, check: Callable[[str], None]) -> dict[str, Answer]:
    """Ask for each target alone what was refused for all together."""
    answers = {}
    for path in host.layers:
        try:
            check(path)
            answers[path] = YES
        except ValueError as error:
            answers[path] = Answer("refused", str(error))
        except CRASHES as error:
            answers[path] = Answer("no", in_one_line(error))
    return answers
