"""Settings of suite "continuation" and of its table. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from metalora._util.number_range import SEED, Items, Range
from metalora.config import AdapterConfig, Configuration, TrainConfig


@dataclass(frozen=True)
class DecoderConfig(Configuration):
    """A small decoder of characters (Llama's layers), pre-trained on news articles."""

    width: Annotated[int, Range(least=1)] = 128
    """width of the hidden layers"""
    layers: Annotated[int, Range(least=1)] = 3
    """number of layers"""
    heads: Annotated[int, Range(least=1)] = 4
    """number of attention heads"""
    context: Annotated[int, Range(least=1)] = 128
    """characters of a text"""
    steps: Annotated[int, Range(least=0)] = 3000
    """number of batches of the pre-training"""
    batch: Annotated[int, Range(least=1)] = 16
    """texts in each batch"""
    lr: Annotated[float, Range(above=0)] = 3e-3
    """peak learning rate"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial weights and of the batches"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * self.heads):  # rotary positions turn pairs of numbers
            raise ValueError(
                f"DecoderConfig.width is {self.width}, expected a multiple of twice its {self.heads} heads"
            )


@dataclass(frozen=True)
class ContinuationRunConfig(Configuration):
    """One run of a decoder that goes on with texts in the style of their prompts."""

    suite: Literal["continuation"] = "continuation"
    """the kind of experiment"""
    data_root: str | None = None
    """folder of the articles; None: the package"""
    model: str = ""
    """hf:FOLDER_OR_ID; empty: the small decoder, pre-trained here and cached"""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """the small decoder that is pre-trained here"""
    method: str = "frozen"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: the model as it is"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=600, lr=5e-3, schedule="onecycle"))
    """how it is trained"""
    batch: Annotated[int, Range(least=1)] = 16
    """texts of a step"""
    prompt: Annotated[int, Range(least=1)] = 64
    """tokens before the continuation"""
    response: Annotated[int, Range(least=1)] = 64
    """tokens of the continuation"""
    test_examples: Annotated[int, Range(least=1)] = 32
    """texts of a style"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial numbers, of the training data and of their order"""
    split: Literal["val", "test"] = "test"
    """val: hyper-parameters are chosen here; test is touched once"""

    @property
    def shared_backbone(self) -> str | None:
        """A name of what several runs share and the first of them trains and caches: the small decoder."""
        return None if self.model else repr((self.suite, self.decoder))

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return whether the scores need trained weights that no file holds: never, as only the adapter is trained."""
        return False


@dataclass(frozen=True)
class ContinuationTableConfig(Configuration):
    """MetaLoRA on a language model: LoRA and generated adapters on texts in many styles."""

    model: str = ""
    """hf:FOLDER_OR_ID; empty: the small decoder, pre-trained here and cached"""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """the small decoder that is pre-trained here"""
    methods: tuple[str, ...] = ()
    """rows to run (empty: all)"""
    targets: str = "linear"
    """which modules are adapted: all, linear, conv, or patterns of module paths"""
    seeds: Annotated[tuple[int, ...], SEED, Items()] = (0, 1, 2)
    """every run is made once with each of these seeds"""
    steps: Annotated[int, Range(least=0)] = 600
    """number of training steps"""
    lr: Annotated[float, Range(above=0)] = 5e-3
    """peak learning rate"""
    lr_grid: Annotated[tuple[float, ...], Range(above=0)] = (1.5e-3, 5e-3, 1.5e-2)
    """rates to choose from on the validation split, per method (empty: `lr` for all)"""
    rank: Annotated[int, Range(least=1)] = 12
    """rank of LoRA, which then has more parameters than the generated adapters"""
    cp_rank: Annotated[int, Range(least=1)] = 8
    """rank of MetaLoRA-CP"""
    ring_rank: Annotated[int, Range(least=1)] = 3
    """rank of MetaLoRA-TR"""
    hidden: Annotated[int, Range(least=1)] = 16
    """width of the mapping net"""
