"""The estimator: meta-train an adapter and a readout on many tasks, then adapt to a new task in one forward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.allocator import keeping_freed_memory
from metalora._util.described import Described
from metalora._util.hub import Uploadable
from metalora._util.process_errors import errors_in_all_processes
from metalora._util.processes import default_device, join_processes, process_index
from metalora._util.progress import progress_bar
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, attach
from metalora.adapters.conditioning.condition import Condition
from metalora.config import TrainConfig, from_dict
from metalora.learner.adapt_many import adapt_tasks
from metalora.learner.backbone import Backbone, load_backbone
from metalora.learner.config import LearnerConfig
from metalora.learner.data import (
    EpisodeSettings,
    PoolEpisodes,
    PreparedInputs,
    Preprocessor,
    ProceduralNotions,
    TaskPool,
    read_tasks,
)
from metalora.learner.data.pool_digest import pools_digest
from metalora.learner.features import StageFeatures, to_device
from metalora.learner.generators import SupportSet, make_generator
from metalora.learner.history import TrainingHistory
from metalora.learner.meta_training import EpisodeLoss
from metalora.learner.readouts import Readout, make_readout
from metalora.learner.report import EPISODES, Report, make_report
from metalora.learner.splits import Split, split_pools
from metalora.learner.task import AdaptedTask, adapt_task
from metalora.learner.validation import BestState, warn_without_validation

OnStep = Callable[[int, float], None]
OnValidation = Callable[[int, float], None]
CHECKPOINT_EVERY = 100  # steps, if there is no validation


class NotFittedError(ValueError, AttributeError):
    """Something is asked for that only a training gives; an AttributeError, so that `hasattr` says no."""


class MetaLearner(Described, Uploadable):
    """Meta-trains an adapter of a frozen network on tasks, and adapts to a new task in one forward pass.

    A task gives labels to inputs. A readout maps the features of a labelled support set to a classifier in closed form;
    the adapter is trained so that this classifier is right on further inputs of the same task.

    Args:
        backbone: A name (timm:resnet18, hf:FOLDER, minilm, ...) or a network; see `load_backbone`.
        config: The settings; None: the defaults.
        preprocessor: The preparation of the inputs, for a network that does not tell it.
        device: Where the network runs; None: a GPU if there is one.
        **settings: Single fields of `LearnerConfig`, such as `adapter=AdapterConfig("lora", rank=8)` or `steps=300`.

    Attributes:
        config: The settings.
        backbone: The network with the preparation of its inputs.
        adapter: The adapter; None if `config.adapter` is None.
        readout: The readout that support sets generate.
        report_: After `fit`: tasks that were held out, next to what a user would pick instead. ValueError before it.
        history_: Losses and validations of the last training; empty before one.

    Raises:
        ValueError: An unknown setting, backbone or readout, with the nearest valid name.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> learner = MetaLearner(network, steps=5, validate_every=0)
        >>> learner = learner.fit(rng.normal(size=(200, 8)).astype("float32"))  # without labels
        >>> inputs, labels = rng.normal(size=(20, 8)).astype("float32"), ["ripe", "green"] * 10
        >>> task = learner.adapt(inputs, labels)
        >>> task.predict(inputs[:3]).shape, task.classes_.tolist()
        ((3,), ['green', 'ripe'])
    """

    def __init__(
        self,
        backbone: str | nn.Module | Backbone,
        config: LearnerConfig | None = None,
        *,
        preprocessor: Preprocessor | None = None,
        device: str | torch.device | None = None,
        **settings: Any,
    ):
        known = {} if config is None else {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        self.config = from_dict(LearnerConfig, {**known, **settings}, "MetaLearner")
        self.readout: Readout = make_readout(self.config.readout, **self.config.readout_settings).eval()
        self.plain_readout = make_readout(
            self.config.readout, **self.config.readout_settings
        ).eval()  # as it starts, for the frozen network
        self.backbone = load_backbone(
            backbone,
            preprocessor=preprocessor,
            image_size=self.config.image_size,
            max_length=self.config.max_length,
        )
        self.device = torch.device(device or default_device())
        model = self.backbone.model.to(self.device)
        self.readout.to(self.device)
        self.plain_readout.to(self.device)
        if adapter_of(model) is not None:
            raise ValueError(f"backbone {type(model).__name__} has an adapter already: detach it first")
        self.adapter: Adapter | None = None
        if self.config.adapter is not None:
            self.adapter = attach(model, dataclasses.replace(self.config.adapter, seed=self.config.seed))
        self.generator = make_generator(self.config.generator, self.adapter)
        if self.generator is not None:
            self.generator.to(self.device)
        self.frozen_width = 0  # number of features of the frozen network, the first columns of `encode`
        self._report: Report | None = None
        self.history_ = TrainingHistory()
        self.trainings = 0  # how often it was trained: its earlier tasks belong to other numbers
        self.folder: Path | None = None  # where it was saved last, so that a task can say where its learner is
        self.watch()
        self._initial = self._trained_state()

    def _trained_state(self) -> dict[str, Tensor]:
        """Return a copy of all that is trained: adapter, readout and generator."""
        states = self.trained_modules.state_dict()
        if self.adapter is not None:
            states |= {f"adapter.{name}": value for name, value in self.adapter.state_dict().items()}
        return {name: value.detach().clone() for name, value in states.items()}

    def _reset(self) -> None:
        """Undo all training."""
        adapter = {k.removeprefix("adapter."): v for k, v in self._initial.items() if k.startswith("adapter.")}
        if self.adapter is not None:
            self.adapter.load_state_dict(adapter)
        self.trained_modules.load_state_dict({k: v for k, v in self._initial.items() if not k.startswith("adapter.")})

    def watch(self) -> None:
        """Record the features of the network and its adapter, as they are now."""
        config = self.config
        self.features = StageFeatures(self.backbone.model, self.adapter, config.stages, config.hidden_statistics)

    @property
    def trained_modules(self) -> nn.ModuleDict:
        """What is trained with the adapter: the readout, and the generator if it has parameters of its own."""
        modules: dict[str, nn.Module] = {"readout": self.readout}
        if self.generator is not None:
            modules["generator"] = self.generator
        return nn.ModuleDict(modules)

    # ---- training --------------------------------------------------------------------------------------------------
    @property
    def report_(self) -> Report:
        """The comparison of the last training with its peers.

        Raises:
            ValueError: There is none: the learner was not trained, or trained with `report=False`.
        """
        if self._report is None:
            raise NotFittedError("this learner has no report_: call fit first, or make_report after fit(report=False)")
        return self._report

    @report_.setter
    def report_(self, report: Report) -> None:
        self._report = report

    def fit(
        self,
        tasks: Any,
        *,
        images: str | Path | None = None,
        image_column: str | None = None,
        text_column: str | None = None,
        label_columns: Sequence[str] | None = None,
        group_column: str | None = None,
        holdout: int | Sequence[str] | None = None,
        checkpoint: str | Path | None = None,
        on_step: OnStep | None = None,
        progress: bool = False,
        report: bool = True,
    ) -> MetaLearner:
        """Meta-train the adapter and the readout.

        Args:
            tasks: A table (pandas, datasets, .csv, .tsv, .jsonl, .parquet) with a column of image paths or of texts and
                columns of labels, of which any may be missing; a folder of class folders, or of several such folders;
                an iterable of (inputs, labels); or nothing but inputs: then all notions are procedural.
            images: The folder that image paths are relative to; None: that of the table.
            image_column: The column of image paths; None: it is found by its values.
            text_column: The column of texts.
            label_columns: The columns of labels; None: all others.
            group_column: Inputs with the same value never are in a support set and in its queries, such as pictures of
                one product.
            holdout: How many tasks, or which, are not trained on, but kept for the validation and the report. None: a
                fifth of them if there are at least five.
            checkpoint: A file for the state of the training. If it exists, the training continues from it.
            on_step: Called after every step with its number and its loss.
            progress: Show a progress bar on standard error.
            report: Compare the learner with its peers after the training (`report_`).

        Returns:
            The learner itself.

        Raises:
            ValueError: The tasks cannot be read, or are too small for an episode.
        """
        join_processes()
        with errors_in_all_processes():
            pools = read_tasks(
                tasks,
                images=images,
                image_column=image_column,
                text_column=text_column,
                label_columns=label_columns,
                group_column=group_column,
            )
        hidden = not progress or process_index() > 0
        with progress_bar(self.config.steps, "meta-training", hidden=hidden) as advance:

            def after(step: int, loss: float) -> None:
                advance(step + 1, f"loss {loss:.3f}")
                if on_step is not None:
                    on_step(step, loss)

            return self.fit_pools(pools, holdout=holdout, checkpoint=checkpoint, on_step=after, report=report)

    def fit_pools(
        self,
        pools: Sequence[TaskPool],
        *,
        holdout: int | Sequence[str] | None = None,
        checkpoint: str | Path | None = None,
        on_step: OnStep | None = None,
        on_validation: OnValidation | None = None,
        report: bool = True,
    ) -> MetaLearner:
        """Meta-train on pools of inputs that are read already; see `fit`.

        `on_validation` is called after every validation with the number of steps and the accuracy; what it raises ends
        the training.
        """
        config, source = self.config, None
        join_processes()
        with errors_in_all_processes(), keeping_freed_memory():
            for pool in pools:
                self.backbone.check_inputs(pool.inputs)
            split = split_pools(pools, holdout, config.holdout_items, config.seed)
            if self.adapter is not None and config.steps:
                source = self._episodes(split.trained)
                if process_index() == 0:
                    warn_without_validation(split, config)
        if not config.warm_start:
            self._reset()
        self.trainings += 1
        self._report, self.history_ = None, TrainingHistory()
        with keeping_freed_memory():
            if source is not None:
                data = None if checkpoint is None else pools_digest(pools)
                self._train(source, split, checkpoint, on_step, on_validation, data)
            if report:
                self.report_ = make_report(self, split)
        return self

    def make_report(
        self, pools: Sequence[TaskPool], holdout: int | Sequence[str] | None = None, episodes: int = EPISODES
    ) -> Report:
        """Compare the learner with its peers on the inputs that `fit_pools` kept of these pools; sets `report_`."""
        split = split_pools(pools, holdout, self.config.holdout_items, self.config.seed)
        self.report_ = make_report(self, split, episodes)
        return self.report_

    def _episodes(self, pools: Sequence[TaskPool]) -> PoolEpisodes:
        """Return the source of training episodes: the pools with their inputs and their frozen statistics."""
        config = self.config
        settings = EpisodeSettings(
            support=config.support,
            query=config.query,
            label_sets=config.label_sets,
            procedural=config.procedural,
            class_episodes=config.class_episodes,
        )
        prepared = [PreparedInputs(pool, self.backbone.preprocessor) for pool in pools]
        statistics = [self._frozen_statistics(part) for part in prepared]
        notions = ProceduralNotions(torch.cat(statistics)) if config.procedural else None
        return PoolEpisodes(prepared, notions, statistics, settings)

    def _frozen_statistics(self, prepared: PreparedInputs) -> Tensor:
        """Return the statistics of the frozen network for all inputs of a pool, (n, d), on the CPU."""
        batches = prepared.batches(self.config.batch_size)
        return torch.cat([self.features.frozen(to_device(batch, self.device)).cpu() for batch in batches])

    def _train(
        self,
        source: PoolEpisodes,
        split: Split,
        checkpoint: str | Path | None,
        on_step: OnStep | None,
        on_validation: OnValidation | None,
        data: str | None,
    ) -> None:
        """Train the adapter and the readout on the episodes of a source, and keep the best state by validation."""
        from metalora.training.loop import fit
        from metalora.training.parts import parts_per_step

        assert self.adapter is not None
        if self.adapter.conditional:
            self._calibrate(source)
        train = TrainConfig(
            steps=self.config.steps,
            lr=self.config.lr,
            mapping_lr_ratio=1.0,
            accumulate=self.config.accumulate,
            checkpoint_every=self.config.validate_every or CHECKPOINT_EVERY,
        )
        best = BestState(self, split, checkpoint)

        def after(step: int, loss: float) -> bool:
            if on_step is not None:
                on_step(step, loss)
            stop = best.after_step(step)
            if on_validation is not None and step + 1 in best.history:
                on_validation(step + 1, best.history[step + 1])
            return stop

        loss = EpisodeLoss(
            self.features,
            self.readout,
            source,
            self.generator,
            penalty=train.penalty,
            static_parts=self.config.static_steps * parts_per_step(train),
            forwards=self.config.forwards,
        )
        self.readout.train()
        try:
            losses = fit(
                self.backbone.model,
                self.adapter,
                loss,
                train,
                extra_module=self.trained_modules,
                seed=self.config.seed,
                checkpoint=checkpoint,
                data=data,
                on_step=after,
            )
        finally:
            self.readout.eval()
            self.adapter.eval()
        best.restore()
        self.history_ = TrainingHistory.of(losses, best.history)

    def _calibrate(self, source: PoolEpisodes) -> None:
        """Standardise the features that a generated adapter is made from, by those of eight training episodes."""
        assert self.adapter is not None
        generator = torch.Generator().manual_seed(self.config.seed)
        self.adapter.calibrate([to_device(source.draw(generator).inputs, self.device) for _ in range(8)])

    # ---- features --------------------------------------------------------------------------------------------------
    def batches(self, items: Sequence[Any]) -> Iterable[Any]:
        """Yield prepared inputs of the network, `config.batch_size` items each, on its device."""
        size = self.config.batch_size
        self.backbone.check_inputs(items)
        for start in range(0, len(items), size):
            yield to_device(self.backbone.preprocessor(items[start : start + size]), self.device)

    def frozen_features(self, items: Sequence[Any]) -> Tensor:
        """Return the statistics of the frozen network for items as the user has them, (n, d)."""
        return torch.cat([self.features.frozen(batch) for batch in self.batches(items)])

    @torch.no_grad()
    def encode(self, items: Sequence[Any], condition: Condition | None = None, frozen: Tensor | None = None) -> Tensor:
        """Return the features phi of items: statistics of the frozen, then of the adapted network, (n, d).

        Args:
            items: Paths, pictures, texts or arrays.
            condition: The condition of a generated adapter; a condition for each example if the adapter takes one.
            frozen: What `frozen_features` gives for these items, (n, d'), if it is known: it is not computed again.
        """
        assert frozen is None or len(frozen) == len(items), "a row for each item"
        known: Iterable[Tensor | None] = repeat(None) if frozen is None else torch.split(frozen, self.config.batch_size)
        phi = []
        for batch, part in zip(self.batches(items), known, strict=False):  # repeat has no end
            statistics = self.features.frozen(batch) if part is None else part
            self.frozen_width = statistics.shape[1]
            phi.append(torch.cat([statistics, self.features.adapted(batch, condition)], 1))
        return torch.cat(phi)

    @torch.no_grad()
    def support_condition(self, items: Sequence[Any], frozen: Tensor, labels: Tensor) -> Condition:
        """Return the condition that a support set makes; for a generated adapter.

        Args:
            items: The support set, as the user has it.
            frozen: Its frozen statistics, (n, d).
            labels: Its classes, (n,).
        """
        assert self.generator is not None
        inputs = to_device(self.backbone.preprocessor(items), self.device)
        support = SupportSet(inputs, frozen.to(self.device), labels.to(self.device))
        condition: Condition = self.generator(self.features, self.readout, support)
        return condition.detach()

    # ---- adapting --------------------------------------------------------------------------------------------------
    def adapt(
        self,
        inputs: Sequence[Any],
        labels: Sequence[Any],
        *,
        kind: str = "auto",
        groups: Sequence[Any] | None = None,
    ) -> AdaptedTask:
        """Adapt to a task: one forward pass of its labelled examples, without a gradient step.

        Args:
            inputs: The support set: paths, pictures, texts or arrays; some 60 are enough.
            labels: A class for each of them (strings, integers, ...), a number (regression), or a set of classes
                (multi-label).
            kind: "classes", "numbers" or "multilabel"; "auto": by the values.
            groups: Inputs with the same value are variants of one thing, such as pictures of one product. The
                probabilities are then calibrated for things that are not in the support set.

        Returns:
            The task: `predict`, `predict_proba`, `transform`, `score`, `save_pretrained`.

        Raises:
            ValueError: Inputs or labels do not fit each other or the backbone, or there are fewer than two classes.
        """
        return adapt_task(self, inputs, labels, kind, groups=groups)

    def adapt_many(self, support_sets: Sequence[tuple[Sequence[Any], ...]], *, kind: str = "auto") -> list[AdaptedTask]:
        """Adapt to several tasks; their support sets share the passes of the network.

        The generators "gradient-step" and "component" have a pass more for each support set.

        Args:
            support_sets: (inputs, labels) or (inputs, labels, groups) of each task; see `adapt`.
            kind: What the labels of all of them are; see `adapt`.

        Returns:
            A task for each support set: what `adapt` gives for it.

        Raises:
            ValueError: As `adapt`; no task is made then.
        """
        return adapt_tasks(self, support_sets, kind)

    # ---- files -----------------------------------------------------------------------------------------------------
    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the learner as a folder: adapter and readout, settings, preparation of inputs, report, model card.

        Raises:
            ValueError: The folder could not be written; nothing is half-written.
        """
        from metalora.learner.saving import save_learner

        self.folder = save_learner(self, folder)
        return self.folder

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        backbone: nn.Module | str | None = None,
        device: str | torch.device | None = None,
        allow_download: bool = False,
        revision: str | None = None,
    ) -> MetaLearner:
        """Load a learner that `save_pretrained` wrote, from a folder or from the Hub.

        Args:
            folder: The folder, or the name of a repository on the Hub, OWNER/NAME.
            backbone: The network; None: it is loaded by the name in the folder.
            device: Where the network runs; None: a GPU if there is one.
            allow_download: Whether the network that the folder names may be downloaded; a bundled one, a folder and
                weights in a file are loaded without it.
            revision: A branch, a tag or a commit of the repository; None: its main branch.

        Raises:
            ValueError: The folder is not complete, the repository cannot be read or holds something else, or the
                backbone is not the one that the adapter was trained on, or it would be downloaded.
        """
        from metalora.learner.saving import load_learner

        return load_learner(cls, folder, backbone, device, allow_download, revision)

    def write_for_hub(self, folder: Path) -> None:
        """Write what `save_pretrained` writes; unlike there, tasks do not name the folder afterwards."""
        from metalora.learner.saving import save_learner

        save_learner(self, folder)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the backbone's weights, the adapter, the readout and the preparation of inputs."""
        from metalora.learner.saving import learner_fingerprint

        return learner_fingerprint(self)

    def as_classifier(self) -> Any:
        """Return a classifier with scikit-learn's interface; every `fit` adapts this learner to a task."""
        from metalora.learner.classifier import LearnerClassifier

        return LearnerClassifier(self)

    def description(self) -> dict[str, str]:
        """Return what `print` and a notebook show: network, adapter, readout and the verdict."""
        shown = {
            "network": f"{self.backbone.name or type(self.backbone.model).__name__}, {self.backbone.preprocessor.kind}",
            "adapter": "none",
        }
        if self.adapter is not None:
            parts = self.adapter.description()
            shown["adapter"] = f"{self.adapter.method.name}, rank {parts['rank']}, targets {parts['targets']}"
            shown |= {name: parts[name] for name in ("parameters", "condition")}
        shown["readout"] = self.config.readout
        if hasattr(self, "report_"):
            shown["report"] = self.report_.verdict
        return shown
