"""Configurations of image classification: its runs and its table; imports no torch."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from metalora._util.number_range import PROBABILITY, SEED, Items, Range
from metalora.config import AdapterConfig, Configuration, TrainConfig


def _cosine() -> TrainConfig:
    return TrainConfig(steps=300, lr=1e-3, schedule="cosine", warmup=0.1, weight_decay=0.01)


@dataclass(frozen=True)
class ImageRunConfig(Configuration):
    """One run of image classification: a pre-trained network, a linear head, and an adapter or none."""

    suite: Literal["images"] = "images"
    """the kind of experiment"""
    data: str = "emoji:people"
    """folder:PATH, dtd, eurosat, cifar10, cifar100, hub:OWNER/NAME, hub:OWNER/NAME:LABEL_COLUMN, or emoji:COLUMN"""
    data_root: str | None = None
    """folder of the pictures, as torchvision keeps them; the start of a relative PATH; the cache of `datasets`"""
    model: str = "dinov2-small"
    """what `metalora.learner.load_backbone` takes (timm:NAME, timm:NAME@CHECKPOINT, torchvision:NAME, hf:FOLDER_OR_ID,
    efficientnet-lite0), a known architecture such as vit-base, or dinov2-small (`metalora-papers fetch vit`)"""
    size: Annotated[int | None, Range(least=1)] = None
    """height and width of the pictures in pixels; None: those that the network was trained with"""
    augment: Literal["none", "crop-flip"] = "none"
    """crop-flip: a random part of each training picture, at random mirrored"""
    method: str = "head alone"
    """name of the row in tables"""
    adapter: AdapterConfig | None = None
    """None: no adapter"""
    full: bool = False
    """train every weight of the network: the reference, without an adapter"""
    train: TrainConfig = field(default_factory=_cosine)
    """how it is trained"""
    batch: Annotated[int, Range(least=1)] = 16
    """pictures of a step"""
    examples: Annotated[int, Range(least=0)] = 0
    """training pictures, drawn once for all runs (0: all)"""
    test_examples: Annotated[int, Range(least=0)] = 0
    """pictures that are scored, likewise (0: all)"""
    seed: Annotated[int, SEED] = 0
    """seed of the initial numbers, of the training data and of their order"""
    split: Literal["val", "test"] = "test"
    """val: hyper-parameters are chosen here; test is touched once"""

    @property
    def shared_backbone(self) -> str | None:
        """None: the network comes with its weights."""
        return None

    def trains_unsaved_weights(self, adapter_is_given: bool) -> bool:
        """Return whether the scores need trained weights that no file holds: a network, or a head with no adapter."""
        return self.full or not adapter_is_given


@dataclass(frozen=True)
class ImageTableConfig(Configuration):
    """TensLoRA's two protocols on image classification."""

    data: str = "emoji:people"
    """as in a run"""
    data_root: str | None = None
    """as in a run"""
    model: str = "dinov2-small"
    """as in a run"""
    size: Annotated[int | None, Range(least=1)] = None
    """height and width of the pictures in pixels; None: those that the network was trained with"""
    augment: Literal["none", "crop-flip"] = "none"
    """crop-flip: a random part of each training picture, at random mirrored"""
    methods: tuple[str, ...] = ()
    """rows to run (empty: all); further ones by name: a method such as metatt-4d, "lora, rank 16", or any construction
    with a protocol, such as "tenslora-qkv-depth-tt, isoparameters" """
    targets: Annotated[tuple[str, ...], Items()] = ("q_proj", "k_proj", "v_proj")
    """what LoRA and the constructions adapt; attn.qkv in a ViT of timm"""
    rank: Annotated[int, Range(least=1)] = 8
    """of LoRA, whose scale is two"""
    alpha: Annotated[float, Range()] = 4.0
    """of the tensor trains of MetaTT"""
    init: str = "ze-id-id-id"
    """of MetaTT-4D, core by core"""
    seeds: Annotated[tuple[int, ...], SEED, Items()] = (0, 1, 2, 3, 4)
    """every run is made once with each of these seeds"""
    steps: Annotated[int, Range(least=0)] = 300
    """number of training steps"""
    batch: Annotated[int, Range(least=1)] = 16
    """pictures of a step"""
    examples: Annotated[int, Range(least=0)] = 0
    """training pictures, drawn once for all runs (0: all)"""
    test_examples: Annotated[int, Range(least=0)] = 0
    """pictures that are scored, likewise (0: all)"""
    lr: Annotated[float, Range(above=0)] = 1e-3
    """peak learning rate"""
    lr_grid: Annotated[tuple[float, ...], Range(above=0)] = ()
    """rates to choose from on the validation split, per row (empty: `lr` for all)"""
    weight_decay: Annotated[float, Range(least=0)] = 0.01
    """decoupled weight decay of AdamW"""
    warmup: Annotated[float, PROBABILITY] = 0.1
    """share of the steps"""
    mixed_precision: Literal["no", "bf16"] = "no"
    """dtype of the operations that autocast lowers"""
