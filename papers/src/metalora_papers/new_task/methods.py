"""The methods: each turns a support set into something that predicts."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metalora.learner import AdaptedTask, Backbone, FineTuned, MetaLearner, finetune
from metalora.learner.features import to_device
from metalora.learner.peers import fit_peer
from metalora_papers.learner.setfit import SetFit, embeddings, fit_head
from metalora_papers.new_task.config import NewTaskRunConfig
from metalora_papers.new_task.items import NewTask
from metalora_papers.new_task.line_up import CLASSIFIERS, LORAS, REFINED, SETFIT, lora
from metalora_papers.suite import device_of

Array = np.ndarray[Any, Any]
VALIDATE_EVERY = 8  # steps of a fine-tuning; the best step by a fifth of the support set is kept


@dataclass(frozen=True)
class Fitted:
    """What a method made of a support set.

    Attributes:
        predict: Inputs -> their classes, (m,).
        bytes: Returns the number of bytes that must be stored for the task.
    """

    predict: Callable[[Sequence[Any]], Array]
    bytes: Callable[[], int]


Fit = Callable[[NewTask], Fitted]


def make_fit(run: NewTaskRunConfig, backbone: Backbone, learner: MetaLearner | None) -> Fit:
    """Return what fits one support set; the copy of a network that it trains is made here, before any clock starts.

    Args:
        run: Method, steps and learning rate.
        backbone: The frozen network.
        learner: The learner, or one of the frozen network alone; None for a method that trains a copy of the network.
    """
    if run.method == SETFIT:
        return _SetFitFit(run, backbone)
    if learner is None:
        return _FineTuningFit(run, copy.deepcopy(backbone))
    return _ClassifierFit(run.method, learner) if run.method in CLASSIFIERS else _ReadoutFit(run, learner)


class _ClassifierFit:
    """A classifier of scikit-learn on the frozen features of all stages."""

    def __init__(self, name: str, learner: MetaLearner):
        self.name, self.learner = name, learner

    def __call__(self, task: NewTask) -> Fitted:
        peer = fit_peer(self.name, self._features(task.inputs), np.array(task.labels))
        return Fitted(lambda queries: peer.predict(self._features(queries)), lambda: len(pickle.dumps(peer)))

    def _features(self, inputs: Sequence[Any]) -> Array:
        return self.learner.frozen_features(inputs).cpu().numpy()


class _ReadoutFit:
    """The readout of a learner, or of the frozen network; with steps, the adapter is refined after it."""

    def __init__(self, run: NewTaskRunConfig, learner: MetaLearner):
        self.run, self.learner = run, learner

    def __call__(self, task: NewTask) -> Fitted:
        adapted: AdaptedTask = self.learner.adapt(task.inputs, task.labels, kind="classes", groups=task.groups)
        if self.run.method == REFINED:
            run = self.run
            adapted = adapted.refine(task.inputs, task.labels, steps=run.steps, lr=run.lr, seed=run.seed)
        return Fitted(adapted.predict, lambda: len(adapted.to_bytes()))


class _FineTuningFit:
    """A LoRA or the whole network, with a linear head on the last layer or on all stages."""

    def __init__(self, run: NewTaskRunConfig, backbone: Backbone):
        self.run, self.backbone = run, backbone

    def __call__(self, task: NewTask) -> Fitted:
        run = self.run
        tuned = finetune(
            self.backbone,
            task.inputs,
            task.labels,
            lora(run.targets, run.rank) if run.method in LORAS else "full",
            seed=run.seed,
            groups=task.groups,
            steps=run.steps,
            lr=run.lr,
            validate_every=VALIDATE_EVERY,
            features=run.features,
        )
        return Fitted(tuned.predict, lambda: _saved_bytes(tuned))


def _saved_bytes(tuned: FineTuned) -> int:
    with tempfile.TemporaryDirectory() as folder:
        place = tuned.save_pretrained(Path(folder) / "tuned")
        return sum(file.stat().st_size for file in place.rglob("*.safetensors"))


class _SetFitFit:
    """SetFit's algorithm: contrastive pairs, then a logistic regression."""

    def __init__(self, run: NewTaskRunConfig, backbone: Backbone):
        self.run, self.backbone = run, backbone

    def __call__(self, task: NewTask) -> Fitted:
        run, device = self.run, device_of(self.backbone.model)
        support, labels = self._prepared(task.inputs), torch.tensor(task.labels, device=device)
        *_, (_, features) = SetFit(self.backbone.model).training(support, labels, run.lr, run.steps, run.seed)
        head = fit_head(features, support, labels)
        return Fitted(
            lambda queries: head.predict(embeddings(features, self._prepared(queries))),
            lambda: len(pickle.dumps(head)) + _bytes_of(features.model),
        )

    def _prepared(self, items: Sequence[Any]) -> Any:
        return to_device(self.backbone.preprocessor(items), device_of(self.backbone.model))


def _bytes_of(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())
