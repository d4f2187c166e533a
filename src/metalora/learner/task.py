"""A task that a learner has adapted to: predictions, embeddings, scores, refinement, a file of kilobytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metalora._util.described import Described
from metalora._util.hub import Uploadable
from metalora._util.shown import cut
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.condition_table import ConditionTable, TableRow
from metalora.learner.labels import TaskLabels, group_numbers
from metalora.learner.readouts import FittedReadout

if TYPE_CHECKING:
    from metalora.learner.learner import MetaLearner

Array = np.ndarray[Any, Any]


class LabelledItems(NamedTuple):
    """A support set as the user gave it: inputs, their labels, and their groups or None."""

    inputs: list[Any]
    labels: list[Any]
    groups: list[Any] | None = None


class AdaptedTask(Described, Uploadable):
    """What a learner made of a support set; it predicts for further inputs.

    Args:
        learner: The learner that made it.
        readout: The readout that the support set gave.
        labels: The classes, or what else the labels are.
        condition: The condition of a generated adapter, or its row in a table; None for a static adapter.
        factors: Factors of the adapter that `refine` has changed, by key; None: those of the learner.
        support: The support set, to add further examples; None after loading.

    Attributes:
        classes_: The classes, in the order of the columns of `predict_proba`.
        condition: The condition of a generated adapter; None for a static one.
        kind: "classes", "numbers" or "multilabel".
        stored_condition: The condition as it was given.
    """

    def __init__(
        self,
        learner: MetaLearner,
        readout: FittedReadout,
        labels: TaskLabels,
        condition: Condition | TableRow | None = None,
        factors: dict[str, Tensor] | None = None,
        support: LabelledItems | None = None,
    ):
        self.learner, self.readout, self.labels = learner, readout, labels
        self.stored_condition, self.factors, self.support = condition, factors, support
        self._training = learner.trainings

    @property
    def condition(self) -> Condition | None:
        """The condition of a generated adapter; None for a static one."""
        stored = self.stored_condition
        return stored.condition() if isinstance(stored, TableRow) else stored

    @property
    def kind(self) -> str:
        """What the labels are: "classes", "numbers" or "multilabel"."""
        return self.labels.kind

    @property
    def classes_(self) -> Array:
        """The classes, in the order of the columns of `predict_proba`."""
        return self.labels.classes_array()

    # ---- predictions -----------------------------------------------------------------------------------------------
    def features(self, inputs: Sequence[Any]) -> Tensor:
        """Return the features phi of inputs under this task's adapter, (m, d).

        Raises:
            ValueError: The learner was trained since the task was made.
        """
        self.check_learner()
        with self.learner.features.factor_use.others(self.factors):
            return self.learner.encode(list(inputs), self.condition)  # a Series of pandas counts in its own way

    def check_learner(self) -> None:
        """Raise a ValueError if the learner was trained since the task was made: its readout is of other features."""
        if self._training != self.learner.trainings:
            raise ValueError("the learner was trained after it had adapted to this task: adapt to its examples again")

    @torch.no_grad()
    def decision_function(self, inputs: Sequence[Any]) -> Array:
        """Return the logits of the classes, (m, classes); the predicted numbers of a regression, (m, outputs)."""
        phi = self.features(inputs)
        check_finite(phi, inputs)
        return self.readout.logits(phi).float().cpu().numpy()

    def predict_proba(self, inputs: Sequence[Any]) -> Array:
        """Return a probability for every class, (m, classes), calibrated on the support set.

        Raises:
            ValueError: The labels of the task are numbers.
        """
        return self.labels.probabilities(self.decision_function(inputs))

    def predict(self, inputs: Sequence[Any]) -> Any:
        """Return the class of each input, (m,); numbers for a regression; a list of sets for a multi-label task."""
        return self.labels.decode(self.decision_function(inputs))

    @torch.no_grad()
    def novelty(self, inputs: Sequence[Any]) -> Array:
        """Return how unlike the support set each input is, (m,), from 0 to 1: abstain if it is close to 1.

        It is the share of the support set whose items lie nearer to their nearest other item than the input does.
        """
        return self.readout.novelty(self.features(inputs)).float().cpu().numpy()

    @torch.no_grad()
    def predict_with_novelty(self, inputs: Sequence[Any]) -> tuple[Array, Array]:
        """Return what `decision_function` and `novelty` return, from one pass over the inputs."""
        phi = self.features(inputs)
        check_finite(phi, inputs)
        return self.readout.logits(phi).float().cpu().numpy(), self.readout.novelty(phi).float().cpu().numpy()

    @torch.no_grad()
    def transform(self, inputs: Sequence[Any]) -> Array:
        """Return embeddings, (m, d): features weighted by what they tell of this task; near inputs are alike."""
        return self.readout.embed(self.features(inputs)).float().cpu().numpy()

    def score(self, inputs: Sequence[Any], labels: Sequence[Any]) -> float:
        """Return the accuracy; R^2 for a regression, the mean accuracy over classes for a multi-label task."""
        return self.labels.score(self.predict(inputs), labels)

    # ---- more labels -----------------------------------------------------------------------------------------------
    def add(self, inputs: Sequence[Any], labels: Sequence[Any], *, groups: Sequence[Any] | None = None) -> AdaptedTask:
        """Return the task of the old and the new labelled inputs together; nothing is trained.

        Args:
            inputs: Further inputs.
            labels: Their labels.
            groups: Their groups, if the task was made with groups.

        Raises:
            ValueError: The task was loaded from a file, which does not hold its support set; or only one of the task
                and the further inputs has groups.
        """
        if self.support is None:
            raise ValueError("this task was loaded without its support set: adapt to all labelled inputs instead")
        old = self.support
        if (old.groups is None) != (groups is None):
            raise ValueError(f"this task was made with{'out' if old.groups is None else ''} groups: add the same")
        all_groups = None if old.groups is None or groups is None else [*old.groups, *groups]
        everything = [*old.inputs, *inputs], [*old.labels, *labels]
        return adapt_task(self.learner, *everything, self.kind, self.factors, all_groups)

    def refine(
        self, inputs: Sequence[Any], labels: Sequence[Any], *, steps: int = 20, lr: float = 1e-3, seed: int = 0
    ) -> AdaptedTask:
        """Return the task after fine-tuning the adapter, or its generated core, on labelled inputs.

        A step makes a readout from one half of the inputs and judges it by the other half.

        Args:
            inputs: Labelled inputs; those of the support set may be among them.
            labels: Their labels.
            steps: Number of steps, each a forward and a backward pass of all inputs.
            lr: Learning rate.
            seed: Seed of the halves.
        """
        from metalora.learner.refinement import refine_task

        self.check_learner()
        return refine_task(self, inputs, labels, steps, lr, seed)

    # ---- files -----------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path, *, max_bytes: int | None = None) -> Path:
        """Write the task as a folder with one file, bound to the learner's fingerprint.

        Args:
            folder: The folder.
            max_bytes: Largest size of its numbers; the readout is made compact if it needs more.
        """
        from metalora.learner.saving import save_task

        return save_task(self, folder, max_bytes)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        learner: MetaLearner | None = None,
        *,
        allow_download: bool = False,
        revision: str | None = None,
    ) -> AdaptedTask:
        """Load a task.

        Args:
            folder: What `save_pretrained` wrote, or the name of a repository on the Hub, OWNER/NAME.
            learner: The learner; None: it is loaded from the folder that the task names. A task on the Hub needs it.
            allow_download: Whether the network that the learner's folder names may be downloaded.
            revision: A branch, a tag or a commit of the repository; None: its main branch.

        Raises:
            ValueError: The file is damaged, or of another learner, or the repository cannot be read or holds something
                else.
        """
        from metalora.learner.saving import load_task

        return load_task(cls, folder, learner, allow_download, revision)

    def write_for_hub(self, folder: Path) -> None:
        """Write what `save_pretrained` writes, but not where the learner is on this machine."""
        from metalora.learner.saving import save_task_without_place

        save_task_without_place(self, folder)

    def to_bytes(self, *, max_bytes: int | None = None, fingerprint: str | None = None) -> bytes:
        """Return the content of the file that `save_pretrained` writes, for a store that is no folder.

        Args:
            max_bytes: Largest size of its numbers; the readout is made compact if it needs more.
            fingerprint: `learner.fingerprint`, if it is known; see `from_bytes`.

        Raises:
            ValueError: A number is not finite, or there is no readout that small.
        """
        from metalora.learner.saving import dump_task

        return dump_task(self, max_bytes, None, "task", fingerprint)

    @classmethod
    def from_bytes(
        cls,
        content: bytes,
        learner: MetaLearner,
        *,
        place: str = "task",
        fingerprint: str | None = None,
        conditions: ConditionTable | None = None,
    ) -> AdaptedTask:
        """Load a task that `to_bytes` gave.

        Args:
            content: What `to_bytes` returned, or the content of a task's file.
            learner: The learner that made it.
            place: How messages call the task.
            fingerprint: `learner.fingerprint`, by somebody who loads many tasks of a learner that is not trained any
                more: to compute it takes milliseconds for each task.
            conditions: A table that keeps the conditions of many tasks of the learner in one matrix, from which
                `outputs_of_many` reads those of a batch at once; None: the task has a condition of its own.

        Raises:
            ValueError: The content is damaged, or of another learner.
        """
        from metalora.learner.saving import make_task, parse_task

        return make_task(cls, *parse_task(content, place), learner, place, fingerprint, conditions)

    # ---- shown -----------------------------------------------------------------------------------------------------
    def description(self) -> dict[str, str]:
        """Return what `print` and a notebook show: the labels, the readout with its size, and the learner."""
        names = f" ({_first_names(self.labels.classes)})" if self.kind != "numbers" else ""
        support = "" if self.support is None else f" of {len(self.support.inputs)} examples"
        size = sum(tensor.nbytes for tensor in self.readout.tensors().values())
        shown = {
            "labels": f"{self.labels.summary()}{names}",
            "readout": f"{self.learner.config.readout}{support}, {size:,} bytes",
            "condition": "none (static)" if self.stored_condition is None else "made from the support set",
        }
        if self.factors:
            shown["refined"] = f"{len(self.factors)} factors of its own"
        learner = self.learner.description()
        return shown | {name: learner[name] for name in ("network", "adapter", "parameters") if name in learner}


def adapt_task(
    learner: MetaLearner,
    inputs: Sequence[Any],
    labels: Sequence[Any],
    kind: str = "auto",
    factors: dict[str, Tensor] | None = None,
    groups: Sequence[Any] | None = None,
) -> AdaptedTask:
    """Make a task from a support set: its features, its condition if the adapter takes one, and its readout.

    Args:
        learner: The learner.
        inputs: The support set.
        labels: Its labels.
        kind: What the labels are; see `MetaLearner.adapt`.
        factors: Factors of the adapter instead of the learner's, by key.
        groups: Groups of the support set; see `MetaLearner.adapt`.

    Raises:
        ValueError: Inputs, labels and groups do not fit.
    """
    items = list(inputs)
    encoder = TaskLabels.of(labels, kind, len(items))
    group_codes = None if groups is None else group_numbers(groups, len(items)).to(learner.device)
    with learner.features.factor_use.others(factors):
        # Without a generator there is one pass over the items, which prepares them once.
        frozen = None if learner.generator is None else learner.frozen_features(items)
        condition = None if frozen is None else learner.support_condition(items, frozen, encoder.class_codes())
        support = learner.encode(items, condition, frozen)
    examples = LabelledItems(items, list(labels), None if groups is None else list(groups))
    return AdaptedTask(
        learner, fit_readout(learner, support, encoder, examples, group_codes), encoder, condition, factors, examples
    )


@torch.no_grad()
def fit_readout(
    learner: MetaLearner, support: Tensor, labels: TaskLabels, examples: LabelledItems, groups: Tensor | None
) -> FittedReadout:
    """Return the readout of a support set with features (n, d); ValueError if a feature is not finite."""
    check_finite(support, examples.inputs)
    assert labels.targets is not None
    return learner.readout.fit(support, labels.targets, frozen_width=learner.frozen_width, groups=groups)


def check_finite(features: Tensor, items: Sequence[Any]) -> None:
    """Raise a ValueError that names the first input whose features are NaN or infinite."""
    is_finite = features.isfinite().all(1).tolist()  # all of them: a GPU is waited for once
    wrong = [number for number, finite in enumerate(is_finite) if not finite]
    if wrong:
        first = list(items)[wrong[0]]
        name = first if isinstance(first, (str, Path)) else f"number {wrong[0]}"
        raise ValueError(f"input {name}: its features are NaN or infinite (and those of {len(wrong) - 1} more)")


def _first_names(names: Sequence[Any]) -> str:
    """Return the first of the names of the classes, cut to what a line has room for."""
    return ", ".join(cut(str(name)) for name in names[:4]) + (", ..." if len(names) > 4 else "")
