"""`metalora.check`: attach to a copy, run it forward and backward, merge it, export it, and say what was found."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.features import Inputs
from metalora.adapters.skipped import skipped_sentences
from metalora.checkup import verbs
from metalora.checkup.hosts import Attached, attached
from metalora.checkup.inputs import described
from metalora.checkup.outputs import distance, outputs
from metalora.checkup.probing import (
    DID_NOT_RUN,
    YES,
    Backward,
    Call,
    base_runs_backward,
    changes_output,
    gradients,
    randomise,
    recording,
    weight_is_trained,
    weight_matters,
)
from metalora.checkup.report import Answer, CheckReport, TargetCheck
from metalora.checkup.subject import CRASHES, Subject, in_one_line, subject_of
from metalora.config import AdapterConfig

if TYPE_CHECKING:
    from metalora.integrations.peft import TensorNetworkConfig

LARGEST = 150_000_000  # parameters; of a larger model only the structure is checked


def check(
    model: nn.Module,
    config: AdapterConfig | TensorNetworkConfig,
    *,
    example: Inputs | None = None,
    largest: int = LARGEST,
) -> CheckReport:
    """Check what an adapter does in a model, target by target; the model itself is not changed.

    A copy gets the adapter with random factors. It runs forward and backward, is merged, and is exported as plain LoRA
    that PEFT loads into another copy. Two outputs are the same if they differ by less than 1e-4 of the update plus 4e-6
    of the output. The copies are in float64 where the model runs in it.

    Args:
        model: The model, without an adapter.
        config: A configuration for `metalora.attach`, or one of `metalora.peft`: then PEFT puts the adapter in.
        example: What the model takes; None: small inputs are tried that models of transformers, timm and torchvision
            and plain networks take.
        largest: Number of parameters above which a model is not run: the report says which targets there are.

    Returns:
        The report. `report.faults` is empty if nothing is wrong; `print(report)` shows a line for each target.

    Raises:
        ValueError: What `metalora.attach` refuses.

    Example:
        >>> import torch, metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> report = metalora.check(model, metalora.AdapterConfig("lora", rank=2, targets="linear"))
        >>> print(report)
        lora on Sequential: 1 targets, inputs a tensor (2, 8), float64
          forward    yes
          gradients  yes
          merged     yes
          exported   yes
          0 (linear): live yes; trained yes; mergeable yes; exportable yes
          skipped 1 weight because presets leave the output head to you: 2
    """
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    if on_meta or sum(parameter.numel() for parameter in model.parameters()) > largest:
        return structure(model, config, "the model is on the meta device" if on_meta else "the model is large")
    subject, why = subject_of(model, example)
    if subject is None:
        return structure(model, config, why)
    with torch.random.fork_rng(devices=[]):
        return run_check(subject, config)


def structure(model: nn.Module, config: AdapterConfig | TensorNetworkConfig, why: str) -> CheckReport:
    """Return the report of a model that is not run: its targets, on a copy without numbers.

    Args:
        model: The model; it is not changed.
        config: The configuration.
        why: Why it is not run.
    """
    without_numbers: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in model.parameters()
    }
    without_numbers |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    host = attached(copy.deepcopy(model, without_numbers), config, None)
    exportable = verbs.exportable(host)
    report = _empty(model, host)
    targets = tuple(dataclasses.replace(t, exportable=exportable[t.path]) for t in report.targets)
    return dataclasses.replace(report, inputs=f"none: {why}", precision="not run", targets=targets)


def _empty(model: nn.Module, host: Attached) -> CheckReport:
    adapter = host.adapter
    return CheckReport(
        type(model).__name__,
        adapter.method.name,
        "",
        "",
        targets=tuple(TargetCheck(path, target.kind) for path, target in adapter.targets.items()),
        skipped=tuple(skipped_sentences(adapter.skipped)),
    )


def run_check(subject: Subject, config: AdapterConfig | TensorNetworkConfig) -> CheckReport:
    """Return the report of a model that runs; `check` without the search for inputs.

    Args:
        subject: The model and its inputs; it is not changed.
        config: The configuration.

    Raises:
        ValueError: What `metalora.attach` or the tuner refuses.
    """
    host = attached(subject.fresh(), config, subject.inputs)
    host.model.eval()
    precision = str(subject.base[0].dtype).removeprefix("torch.")
    report = dataclasses.replace(_empty(subject.model, host), inputs=described(subject.inputs), precision=precision)
    try:
        live = randomise(host, subject)
        with recording(host.layers) as recorded, torch.no_grad():
            again = outputs(host.model, subject.inputs)
        backward = gradients(host, subject, live)
    except CRASHES as error:
        refused = isinstance(error, ValueError) and "target" in str(error)
        answer = Answer("refused", str(error)) if refused else Answer("no", in_one_line(error))
        return dataclasses.replace(report, forward=answer)
    same = distance(live, again) == 0
    forward = backward.forward if same else Answer("no", "the second forward gives another output than the first")
    return _with_verbs(dataclasses.replace(report, forward=forward), host, subject, live, recorded.calls, backward)


def _with_verbs(
    report: CheckReport,
    host: Attached,
    subject: Subject,
    live: list[Tensor],
    calls: Mapping[str, Call],
    backward: Backward,
) -> CheckReport:
    """Add to a report what is found out target by target, by merging and by exporting."""
    answers = _of_targets(host, subject, live, calls, backward)
    merged, mergeable = verbs.merged(host, subject, live, calls)
    exported, exportable = verbs.exported(host, subject, live)
    targets = [
        TargetCheck(
            target.path,
            target.kind,
            *answers[target.path],
            mergeable.get(target.path, merged),
            exportable.get(target.path, exported),
        )
        for target in report.targets
    ]
    trained = _all_of([target.trained for target in targets], "no target gets a gradient in this forward")
    return dataclasses.replace(report, gradients=trained, merged=merged, exported=exported, targets=tuple(targets))


def _of_targets(
    host: Attached, subject: Subject, live: list[Tensor], calls: Mapping[str, Call], backward: Backward
) -> dict[str, tuple[Answer, Answer]]:
    """Return for each target whether it is live and whether it is trained."""
    answers = {}
    shares = host.adapter.shares_factors or bool(host.adapter.per_example)
    crash = _crash(subject, backward.error) if backward.error else None
    for path in host.layers:
        trained = backward.has_gradient.get(path, False)
        if trained and not shares:  # a gradient that is not zero says that the output changes
            answers[path] = YES, YES
        elif path not in calls and not trained:
            answers[path] = _of_silent(subject, path)
        else:
            answers[path] = _live(host, subject, live, path), crash or _trained(subject, path, trained)
    return answers


def _crash(subject: Subject, error: str) -> Answer:
    """The answer for every target if the backward of the adapted model has raised an error."""
    if base_runs_backward(subject):
        return Answer("no", error)
    return Answer("unknown", f"the model cannot run a backward, with or without an adapter: {error}")


def _of_silent(subject: Subject, path: str) -> tuple[Answer, Answer]:
    """The answers for a target that no forward has called: its weight may still have been read."""
    if weight_matters(subject, path):
        silent = Answer("no", "the model reads its weight, and the adapter has no effect")
        return silent, silent
    return DID_NOT_RUN, DID_NOT_RUN


def _live(host: Attached, subject: Subject, live: list[Tensor], path: str) -> Answer:
    if changes_output(host, subject, live, path):
        return YES
    if weight_matters(subject, path):
        return Answer("no", "the output is the same without the update of this target")
    return Answer("unknown", "the output does not depend on this layer, with or without an adapter")


def _trained(subject: Subject, path: str, has_gradient: bool) -> Answer:
    if has_gradient:
        return YES
    if weight_is_trained(subject, path):
        return Answer("no", "a factor gets no gradient, although the weight of the base would get one")
    return Answer("unknown", "no gradient reaches this layer, with or without an adapter")


def _all_of(answers: list[Answer], none: str) -> Answer:
    """Return the first answer that is a fault; otherwise yes if some answer is yes."""
    faults = [answer for answer in answers if answer.state == "no"]
    if faults:
        return faults[0]
    if any(answer.state == "yes" for answer in answers):
        return YES
    return answers[0] if len({*answers}) == 1 else Answer("unknown", none)
