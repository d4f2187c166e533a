"""What a check finds, in words: for each target, and for the model as a whole."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["yes", "no", "refused", "unknown"]


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        state: "yes"; "no", which is a fault; "refused", an error that says what to do; "unknown", not to be found out.
        reason: Why, or a remark; empty if there is nothing to say.

    Example:
        >>> print(Answer("yes")), print(Answer("unknown", "did not run in this forward"))
        yes
        unknown: did not run in this forward
        (None, None)
    """

    state: State
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.reason}" if self.reason else self.state


NOT_TRIED = Answer("unknown", "not tried")


@dataclass(frozen=True)
class TargetCheck:
    """What an adapter does at one target.

    Attributes:
        path: Path of the layer.
        kind: Kind of the layer, such as linear or conv2d.
        live: Whether the output of the model changes with the factors of the target.
        trained: Whether these factors get a gradient.
        mergeable: Whether the layer computes the same after merging.
        exportable: Whether a plain LoRA can have this target.
    """

    path: str
    kind: str
    live: Answer = NOT_TRIED
    trained: Answer = NOT_TRIED
    mergeable: Answer = NOT_TRIED
    exportable: Answer = NOT_TRIED


@dataclass(frozen=True)
class CheckReport:
    """What an adapter does in a model.

    Attributes:
        model: Class of the model.
        method: Name of the method.
        inputs: What the forward was run on, in words; why there was none.
        precision: The type of the numbers, such as float64.
        forward: Whether the adapted model runs, and gives the same with gradients as without.
        gradients: Whether every target that changes the output gets a gradient, and the base none.
        merged: Whether the output after merging is the output before.
        exported: Whether the exported LoRA, loaded into a fresh copy of the model, gives the same output.
        targets: One check for each target.
        skipped: What the preset of the targets left out, and why, in sentences.

    Example:
        >>> report = CheckReport("Net", "lora", "a tensor (2, 8)", "float64", forward=Answer("no", "it crashed"))
        >>> report.faults
        ['forward: it crashed']
    """

    model: str
    method: str
    inputs: str
    precision: str
    forward: Answer = NOT_TRIED
    gradients: Answer = NOT_TRIED
    merged: Answer = NOT_TRIED
    exported: Answer = NOT_TRIED
    targets: tuple[TargetCheck, ...] = field(default=())
    skipped: tuple[str, ...] = field(default=())

    @property
    def faults(self) -> list[str]:
        """Everything that is wrong, a sentence each; empty if nothing is."""
        questions = ("forward", "gradients", "merged", "exported")
        faults = [f"{name}: {getattr(self, name).reason}" for name in questions if getattr(self, name).state == "no"]
        for target in self.targets:
            for name in ("live", "trained", "mergeable", "exportable"):
                answer: Answer = getattr(target, name)
                if answer.state == "no":
                    faults.append(f"target {target.path!r}, {name}: {answer.reason}")
        return faults

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**dataclasses.asdict(self), "faults": self.faults}

    def __str__(self) -> str:
        lines = [
            f"{self.method} on {self.model}: {len(self.targets)} targets, inputs {self.inputs}, {self.precision}",
            *(f"  {name:<10} {getattr(self, name)}" for name in ("forward", "gradients", "merged", "exported")),
        ]
        for target in self.targets:
            answers = (f"{name} {getattr(target, name)}" for name in ("live", "trained", "mergeable", "exportable"))
            lines.append(f"  {target.path} ({target.kind}): {'; '.join(answers)}")
        return "\n".join([*lines, *(f"  skipped {sentence}" for sentence in self.skipped)])
