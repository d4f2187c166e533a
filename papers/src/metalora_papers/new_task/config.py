"""Configurations of the runs and of the table of the time to a new task; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from metalora._util.number_range import SEED, Items, Range
from metalora.config import AdapterConfig, Configuration, TrainConfig

NEW_TASK = "new-task"
IMAGES: Final = "new-task-images"
TEXTS: Final = "new-task-texts"
THROUGHPUT: Final = "new-task-throughput"
SUITES = (IMAGES, TEXTS, THROUGHPUT)
TITLES = {IMAGES: "images: emoji, EfficientNet-Lite0", TEXTS: "texts: sentences of BBC News, MiniLM"}


@dataclass(frozen=True)
class NewTaskRunConfig(Configuration):
    """One method on the support sets of one kind of inputs and one seed; or the throughput of 64 tasks."""

    suite: Literal["new-task-images", "new-task-texts", "new-task-throughput"] = "new-task-images"
    """the kind of inputs"""
    method: str = "readout, frozen network"
    """name of the row in tables"""
    data_root: str | None = None
    """folder of the emoji or of the articles; none: the cache or the package that brings them"""
    learner: AdapterConfig | None = None
    """the adapter of the learner, which is meta-trained once and kept in the cache; none: there is no learner"""
    train: TrainConfig = field(default_factory=TrainConfig)
    """how the learner is meta-trained"""
    pool: Annotated[int, Range(least=100)] = 2000
    """number of inputs that the learner is meta-trained on"""
    targets: Annotated[tuple[str, ...], Items()] = ("query", "value")
    """what the fitted LoRA adapts"""
    features: Literal["last", "stages"] = "last"
    """what the head of a fine-tuning reads: the pooled last layer, or all stages as a readout does"""
    rank: Annotated[int, Range(least=1)] = 8
    """rank of the fitted LoRA"""
    steps: Annotated[int, Range(least=0)] = 0
    """number of gradient steps on the support set"""
    lr: Annotated[float, Range(least=0)] = 0.0
    """their learning rate"""
    tasks: tuple[str, ...] = ()
    """the notions that are new tasks"""
    support: Annotated[int, Range(least=10)] = 80
    """labelled items of a new task"""
    queries: Annotated[int, Range(least=1)] = 100
    """items that are predicted"""
    seed: Annotated[int, SEED] = 0
    """seed of the support sets, and of what is trained on them"""
    split: Literal["val", "test"] = "test"
    """val: learning rates and numbers of steps are chosen here"""

    @property
    def adapter(self) -> AdapterConfig | None:
        """None: no adapter is trained by the run itself."""
        return None

    @property
    def shared_backbone(self) -> str | None:
        """A name of what several runs share and the first of them trains and caches: the learner."""
        return None if self.learner is None else repr((self.suite, self.learner, self.train, self.pool))

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return True: what is fitted on a support set is in no file."""
        return True


@dataclass(frozen=True)
class NewTaskTableConfig(Configuration):
    """Seconds until a new task predicts, and its accuracy then: a learner, fine-tuning, and classifiers on features."""

    data_root: str | None = None
    """folder of the emoji or of the articles; none: the cache or the package that brings them"""
    suites: Annotated[tuple[str, ...], Items()] = SUITES
    """kinds of inputs, and the throughput of 64 tasks"""
    methods: tuple[str, ...] = ()
    """rows to run (empty: all)"""
    seeds: Annotated[tuple[int, ...], SEED, Items()] = (0, 1, 2)
    """seeds of the support sets; the learner is meta-trained once"""
    image_steps: Annotated[int, Range(least=1)] = 100
    """steps of the meta-training on images"""
    text_steps: Annotated[int, Range(least=1)] = 30
    """steps of the meta-training on texts, of which each takes longer"""
    pool: Annotated[int, Range(least=100)] = 2000
    """number of inputs that the learner is meta-trained on"""
    image_fit_steps: Annotated[tuple[int, ...], Range(least=1), Items()] = (20, 60)
    """numbers of gradient steps of a LoRA, and of full fine-tuning, on a support set of images, to choose from; of
    those of a training, the best one is kept"""
    text_fit_steps: Annotated[tuple[int, ...], Range(least=1), Items()] = (6, 16)
    """the same on texts"""
    contrastive_steps: Annotated[tuple[int, ...], Range(least=1), Items()] = (32,)
    """numbers of gradient steps of SetFit's algorithm, 16 pairs each, to choose from"""
    refining_steps: Annotated[tuple[int, ...], Range(least=1), Items()] = (6,)
    """numbers of gradient steps after a readout is generated, to choose from"""
    image_tasks: Annotated[tuple[str, ...], Items()] = ("skin", "people")
    """new tasks on images, on which the learner was not trained"""
    text_tasks: Annotated[tuple[str, ...], Items()] = ("first person", "negation")
    """new tasks on texts, on which the learner was not trained"""
    image_validation: Annotated[tuple[str, ...], Items()] = ("hue", "category")
    """tasks of the validation split on which learning rates and numbers of steps are chosen"""
    text_validation: Annotated[tuple[str, ...], Items()] = ("number",)
    """tasks of the validation split on which learning rates and numbers of steps are chosen"""
    support: Annotated[int, Range(least=10)] = 80
    """labelled items of a new task"""
    queries: Annotated[int, Range(least=1)] = 100
    """items that are predicted"""
    lora_rates: Annotated[tuple[float, ...], Range(above=0), Items()] = (1e-3, 4e-3)
    """learning rates of a fitted LoRA to choose from"""
    full_rates: Annotated[tuple[float, ...], Range(above=0), Items()] = (4e-4, 1.6e-3)
    """learning rates of full fine-tuning to choose from"""
    contrastive_rates: Annotated[tuple[float, ...], Range(above=0), Items()] = (2e-5, 1e-4)
    """learning rates of SetFit's algorithm to choose from"""
    refining_rates: Annotated[tuple[float, ...], Range(above=0), Items()] = (1e-3, 4e-3)
    """learning rates of the refinement to choose from"""
    throughput_steps: Annotated[int, Range(least=1)] = 8
    """training steps of each task of the throughput"""
