"""Fine-tuning to one task with many labelled examples: an adapter of any method, the whole network, or a head alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from metalora._util.allocator import keeping_freed_memory
from metalora._util.hub import Uploadable
from metalora._util.process_errors import errors_in_all_processes
from metalora._util.processes import default_device, join_processes, of_process_0
from metalora._util.sending import sent
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, attach
from metalora.config import AdapterConfig, TrainConfig, from_dict
from metalora.fitting.data_start import start_from_data
from metalora.learner.backbone import Backbone, load_backbone
from metalora.learner.data import PreparedInputs, Preprocessor, TaskPool
from metalora.learner.features import to_device
from metalora.learner.finetuning_config import FineTuneConfig
from metalora.learner.finetuning_data import HeldOutScore, Scores, check_classes, stratified_split
from metalora.learner.head import LinearHead, PooledFeatures
from metalora.learner.labels import TaskLabels, group_numbers

Array = np.ndarray[Any, Any]
OnStep = Callable[[int, float], None]
OnValidation = Callable[[int, float], None]
PLAIN_METHODS = ("full", "head")  # what is trained instead of an adapter
LEARNING_RATES = {"full": 5e-5}  # of an adapter or a head: 2e-3


def usual_rate(method: str) -> float:
    """Return the learning rate of a method unless the settings have another.

    Args:
        method: Its name, or "full" or "head".

    Example:
        >>> usual_rate("lora"), usual_rate("full")
        (0.002, 5e-05)
    """
    return LEARNING_RATES.get(method, 2e-3)


class FineTuned(Uploadable):
    """A network that was fine-tuned to one task; `finetune` makes it.

    Args:
        backbone: The network with the preparation of its inputs.
        head: The head on its pooled last layer, or on the statistics of all stages.
        labels: The classes.
        adapter: The adapter; None if the whole network or the head alone was trained.
        method: Name of the method, or "full" or "head".
        config: The settings.

    Attributes:
        classes_: The classes, in the order of the columns of `predict_proba`.
        scores_: Accuracy and macro-F1 on the inputs that were not trained on.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(60, 4)).astype("float32")
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> tuned = finetune(network, x, np.where(x[:, 0] > 0, "ripe", "green"), "head", steps=5)
        >>> tuned.predict_proba(x[:3]).shape, tuned.scores_.inputs
        ((3, 2), 12)
    """

    kind = "classes"
    scores_: Scores

    def __init__(
        self,
        backbone: Backbone,
        head: LinearHead,
        labels: TaskLabels,
        adapter: Adapter | None,
        method: str,
        config: FineTuneConfig,
    ):
        self.backbone, self.head, self.labels = backbone, head, labels
        self.adapter, self.method, self.config = adapter, method, config
        self.device = next(backbone.model.parameters()).device
        self.pooled = _features_of(backbone, adapter, config)

    @property
    def classes_(self) -> Array:
        """The classes, in the order of the columns of `predict_proba`."""
        return self.labels.classes_array()

    @torch.no_grad()
    def features(self, inputs: Sequence[Any]) -> Tensor:
        """Return what the head reads of inputs, (m, width)."""
        from metalora.learner.task import check_finite

        size = self.config.batch_size
        self.backbone.check_inputs(inputs)
        parts = []
        for start in range(0, len(inputs), size):
            items = inputs[start : start + size]
            parts.append(self.pooled(to_device(self.backbone.preprocessor(items), self.device)))
            check_finite(parts[-1], items)
        return torch.cat(parts)

    @torch.no_grad()
    def predict_with_novelty(self, inputs: Sequence[Any]) -> tuple[Array, Array]:
        """Return the logits of the classes, (m, classes), and how unlike the training inputs each input is, (m,)."""
        features = self.features(inputs)
        return self.head(features).cpu().numpy(), self.head.novelty(features).cpu().numpy()

    def predict_proba(self, inputs: Sequence[Any]) -> Array:
        """Return a probability for every class, (m, classes)."""
        logits, _ = self.predict_with_novelty(inputs)
        return self.labels.probabilities(logits)

    def predict(self, inputs: Sequence[Any]) -> Array:
        """Return the class of each input, (m,)."""
        logits, _ = self.predict_with_novelty(inputs)
        predicted: Array = self.labels.decode(logits)
        return predicted

    def score(self, inputs: Sequence[Any], labels: Sequence[Any]) -> float:
        """Return the accuracy."""
        return self.labels.score(self.predict(inputs), labels)

    def num_params(self) -> int:
        """Return how many numbers were trained: those of the head, and of the adapter or the whole network."""
        count = sum(parameter.numel() for parameter in self.head.parameters())
        if self.adapter is not None:
            count += self.adapter.num_params()
        if self.method == "full":
            count += sum(parameter.numel() for parameter in self.backbone.model.parameters())
        return count

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a folder with the adapter (or the network), the head, the preparation of inputs, and a model card.

        Raises:
            ValueError: The folder could not be written; nothing is half-written.
        """
        from metalora.learner.finetuning_files import save_finetuned

        return save_finetuned(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        backbone: nn.Module | str | None = None,
        device: str | torch.device | None = None,
        allow_download: bool = False,
        revision: str | None = None,
    ) -> FineTuned:
        """Load what `save_pretrained` wrote.

        Args:
            folder: The folder, or the name of a repository on the Hub, OWNER/NAME.
            backbone: The network; None: it is loaded by the name in the folder.
            device: Where it runs; None: a GPU if there is one.
            allow_download: Whether the network that the folder names may be downloaded; a bundled one, a folder and
                weights in a file are loaded without it.
            revision: A branch, a tag or a commit of the repository; None: its main branch.

        Raises:
            ValueError: The folder is not complete, the repository cannot be read or holds something else, the backbone
                is another one, or it would be downloaded.
        """
        from metalora.learner.finetuning_files import load_finetuned

        return load_finetuned(cls, folder, backbone, device, allow_download, revision)

    def write_for_hub(self, folder: Path) -> None:
        """Write what `save_pretrained` writes."""
        self.save_pretrained(folder)

    def __repr__(self) -> str:
        return f"FineTuned({self.backbone.name or type(self.backbone.model).__name__}, {self.method}, {self.scores_})"


def finetune(
    backbone: str | nn.Module | Backbone,
    inputs: Sequence[Any],
    labels: Sequence[Any],
    method: str | AdapterConfig = "lora",
    config: FineTuneConfig | None = None,
    *,
    preprocessor: Preprocessor | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    groups: Sequence[Any] | None = None,
    on_step: OnStep | None = None,
    on_validation: OnValidation | None = None,
    **settings: Any,
) -> FineTuned:
    """Fine-tune a network to one task, and keep the best step by inputs that are not trained on.

    The head starts as a logistic regression on the frozen features, so that no result is worse than that on the
    inputs that choose the step.

    Args:
        backbone: A name or a network; see `load_backbone`. A network is changed in place.
        inputs: Paths of pictures, pictures, texts or arrays.
        labels: A class for each of them.
        method: The adapter, or the name of its method; "full" trains the whole network, "head" the head alone.
        config: The settings; None: the defaults.
        preprocessor: The preparation of the inputs, for a network that does not tell it.
        device: Where the network runs; None: a GPU if there is one.
        seed: Seed of the split, the adapter and the batches.
        groups: Group of each input: inputs of one thing are not both trained on and kept.
        on_step: Called after every step with its number and its loss.
        on_validation: Called after every validation with the number of steps and the accuracy; what it raises ends the
            training.
        **settings: Single fields of `FineTuneConfig`, such as `steps=200`.

    Raises:
        ValueError: Inputs, labels and groups do not fit, an unknown method or setting, or labels that are no classes.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(60, 4)).astype("float32")
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> adapter = AdapterConfig("lora", rank=2, targets=("0",))
        >>> finetune(network, x, x[:, 0] > 0, adapter, steps=5, validate_every=5).predict(x[:2]).tolist()
        [True, False]
    """
    known = {} if config is None else dataclasses.asdict(config)
    checked = from_dict(FineTuneConfig, {**known, **settings}, "finetune")
    join_processes()
    with errors_in_all_processes():
        items = list(inputs)
        encoder = TaskLabels.of(check_classes(labels), "classes", len(items))
        loaded = load_backbone(
            backbone, preprocessor=preprocessor, image_size=checked.image_size, max_length=checked.max_length
        )
        if adapter_of(loaded.model) is not None:
            raise ValueError(f"backbone {type(loaded.model).__name__} has an adapter already: detach it first")
        assert encoder.targets is not None
        loaded.check_inputs(items)
        group_codes = None if groups is None else group_numbers(groups, len(items))
        split = stratified_split(encoder.targets.codes, checked.holdout_items, seed, group_codes)
        prepared = PreparedInputs(TaskPool(items, name="the inputs"), loaded.preprocessor)  # reads every input once
        loaded.model.to(device or default_device())
        name, adapter = _attach(loaded.model, method, seed)
        with keeping_freed_memory():
            training = _Training(loaded, prepared, encoder, split, adapter, name, checked, seed)
    with keeping_freed_memory():
        return training.run(on_step, on_validation)


def _attach(model: nn.Module, method: str | AdapterConfig, seed: int) -> tuple[str, Adapter | None]:
    """Return the name of the method, and the adapter if it has one."""
    if isinstance(method, str) and method in PLAIN_METHODS:
        return method, None
    config = AdapterConfig(method) if isinstance(method, str) else method
    if config.method in PLAIN_METHODS:
        return config.method, None
    adapter = attach(model, dataclasses.replace(config, seed=seed))
    if adapter.conditional and config.condition.scope == "support":
        raise ValueError(f"{config.method}: one task has no support sets to generate from; use condition.scope sample")
    return config.method, adapter


def _features_of(backbone: Backbone, adapter: Adapter | None, config: FineTuneConfig) -> PooledFeatures:
    """Return what computes the features that the head reads."""
    is_text = backbone.preprocessor.kind == "text"
    return PooledFeatures(backbone.model, adapter, is_text, all_stages=config.features == "stages")


class _Training:
    """One fine-tuning: batches of the inputs that are trained on, and the best state by the others."""

    def __init__(
        self,
        backbone: Backbone,
        prepared: PreparedInputs,
        labels: TaskLabels,
        split: tuple[Tensor, Tensor],
        adapter: Adapter | None,
        method: str,
        config: FineTuneConfig,
        seed: int,
    ):
        assert labels.targets is not None
        self.prepared, self.config, self.seed = prepared, config, seed
        self.codes = labels.targets.codes
        self.trained, self.kept = split
        self.penalty = TrainConfig().penalty
        device = next(backbone.model.parameters()).device
        if adapter is not None and not adapter.started:
            start_from_data(backbone.model, (to_device(batch, device) for batch in self._batches(self.trained)))
        if adapter is not None and adapter.conditional:
            adapter.calibrate(to_device(batch, device) for batch in self._batches(self.trained))
        self.features = _features_of(backbone, adapter, config)
        frozen = self._features(self.trained, device)
        self.features.remove()
        head = LinearHead.fitted(frozen, self.codes[self.trained], len(labels.classes)).to(device)
        self.tuned = FineTuned(backbone, head, labels, adapter, method, config)
        self.features = self.tuned.pooled
        self.best = HeldOutScore(accuracy=-1.0, macro_f1=-1.0, step=0)
        self.state: dict[str, dict[str, Tensor]] = {}

    def run(self, on_step: OnStep | None, on_validation: OnValidation | None) -> FineTuned:
        """Train, restore the best state, and return the model with its scores."""
        from metalora.training.loop import fit

        tuned, config = self.tuned, self.config

        def validate(step: int) -> None:
            accuracy = self._validate(step)
            if on_validation is not None:
                on_validation(step, accuracy)

        validate(0)
        start = self.best
        tuned.head.requires_grad_(True)
        if tuned.method == "full":
            tuned.backbone.model.requires_grad_(True)
        modules = [tuned.head, *([tuned.backbone.model] if tuned.method == "full" else [])]
        lr = config.lr or usual_rate(tuned.method)

        def after(step: int, loss: float) -> None:
            if on_step is not None:
                on_step(step, loss)
            if (step + 1) % config.validate_every == 0 or step + 1 == config.steps:
                validate(step + 1)

        train = TrainConfig(steps=config.steps, lr=lr, mapping_lr_ratio=1.0, accumulate=config.accumulate)
        if config.steps:
            fit(
                tuned.backbone.model,
                tuned.adapter,
                self._loss,
                train,
                extra_module=nn.ModuleList(modules),
                seed=self.seed,
                on_step=after,
            )
        self._restore()
        tuned.scores_ = Scores(
            inputs=len(self.kept),
            accuracy=self.best.accuracy,
            macro_f1=self.best.macro_f1,
            step=self.best.step,
            head_alone=start.accuracy,
        )
        trained_features = self._features(self.trained, tuned.device)
        kept_features = self._features(self.kept, tuned.device)
        head = tuned.head.cpu()
        head.remember(trained_features, self.codes[self.trained], kept_features)
        tuned.head = head.to(tuned.device).requires_grad_(False)
        return tuned

    def _loss(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        size = min(self.config.batch_size, len(self.trained))
        rows = self.trained[torch.randperm(len(self.trained), generator=generator)[:size]]
        inputs = to_device(self.prepared.batch(rows), self.tuned.device)
        features, penalty = self.features.with_penalty(inputs)
        loss = cross_entropy(self.tuned.head(features), sent(self.codes[rows], features.device))
        return loss if penalty is None else loss + self.penalty * penalty

    def _batches(self, rows: Tensor) -> Iterable[Any]:
        for part in torch.split(rows, self.config.batch_size):
            yield self.prepared.batch(part)

    @torch.no_grad()
    def _features(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return the features of rows of the inputs, (n, width), on the CPU."""
        features = torch.cat([self.features(to_device(batch, device)).cpu() for batch in self._batches(rows)])
        if not features.isfinite().all():
            wrong = int((~features.isfinite().all(1)).nonzero()[0])
            raise ValueError(f"input number {int(rows[wrong])}: its features are NaN or infinite")
        return features

    @torch.no_grad()
    def _validate(self, step: int) -> float:
        """Return the accuracy on the inputs that are not trained on; the state is copied if it is the best one yet."""
        tuned = self.tuned
        if tuned.adapter is not None:
            tuned.adapter.eval()
        logits = tuned.head(self._features(self.kept, tuned.device).to(tuned.device)).cpu()
        score = HeldOutScore.of(logits.argmax(1), self.codes[self.kept], len(tuned.labels.classes), step)
        score = of_process_0(score)  # one choice of the best step for all processes
        if (score.accuracy, score.macro_f1) > (self.best.accuracy, self.best.macro_f1):
            self.best = score
            self.state = {
                name: {key: value.detach().clone() for key, value in module.state_dict().items()}
                for name, module in self._modules().items()
            }
        if tuned.adapter is not None:
            tuned.adapter.train()
        return score.accuracy

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"head": self.tuned.head}
        if self.tuned.adapter is not None:
            modules["adapter"] = self.tuned.adapter
        if self.tuned.method == "full":
            modules["network"] = self.tuned.backbone.model
        return modules

    def _restore(self) -> None:
        for name, module in self._modules().items():
            module.load_state_dict(self.state[name])
            module.requires_grad_(False)
        if self.tuned.adapter is not None:
            self.tuned.adapter.eval()
