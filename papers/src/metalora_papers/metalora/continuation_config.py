"""Settings of suite "continuation" and of its table. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metalora.config import AdapterConfig, TrainConfig


@dataclass(frozen=True)
class DecoderConfig:
    """A small decoder of characters (Llama's layers), pre-trained on news articles."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    context: int = 128
    """characters of a text"""
    steps: int = 3000
    batch: int = 16
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class ContinuationRunConfig:
    """One run of a decoder that goes on with texts in the style of their prompts."""

    suite: Literal["continuation"] = "continuation"
    data_root: str | None = None
    """folder of the articles; None: the package"""
    model: str = ""
    """hf:FOLDER_OR_ID; empty: the small decoder, pre-trained here and cached"""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    method: str = "frozen"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: the model as it is"""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=600, lr=5e-3, schedule="onecycle"))
    batch: int = 16
    """texts of a step"""
    prompt: int = 64
    """tokens before the continuation"""
    response: int = 64
    """tokens of the continuation"""
    test_examples: int = 32
    """texts of a style"""
    seed: int = 0
    split: Literal["val", "test"] = "test"

    @property
    def shared_backbone(self) -> str | None:
        """A name of what several runs share and the first of them trains and caches: the small decoder."""
        return None if self.model else repr((self.suite, self.decoder))

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return whether the scores need trained weights that no file holds: never, as only the adapter is trained."""
        return False


@dataclass(frozen=True)
class ContinuationTableConfig:
    """MetaLoRA on a language model: LoRA and generated adapters on texts in many styles."""

    model: str = ""
    """hf:FOLDER_OR_ID; empty: the small decoder, pre-trained here and cached"""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    methods: tuple[str, ...] = ()
    """rows to run (empty: all)"""
    targets: str = "linear"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 600
    lr: float = 5e-3
    lr_grid: tuple[float, ...] = (1.5e-3, 5e-3, 1.5e-2)
    """rates to choose from on the validation split, per method (empty: `lr` for all)"""
    rank: int = 12
    """rank of LoRA, which then has more parameters than the generated adapters"""
    cp_rank: int = 8
    ring_rank: int = 3
    hidden: int = 16
    """width of the mapping net"""
