"""What is timed; imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from metalora.config import ConditionConfig


@dataclass(frozen=True)
class BenchConfig:
    """A model, its inputs, and the adapters that are timed beside the frozen model and beside PEFT's."""

    model: str = "minilm"
    """minilm (its shape, no weights needed), timm:NAME, hf:FOLDER_OR_ID or a known architecture"""
    methods: tuple[str, ...] = ("lora", "metatt-4d", "metatt-5d", "lotr", "tenslora-qkv-depth")
    peers: tuple[str, ...] = ("lora",)
    """PEFT's tuners at the same rank and targets: lora, vera, lokr, loha"""
    rank: int = 8
    targets: str | tuple[str, ...] = ("query", "key", "value")
    tasks: int = 1
    """of methods with a task mode; the examples of a batch have different tasks as far as there are so many"""
    layers: int = 6
    """of minilm's shape"""
    batch: int = 16
    tokens: int = 128
    size: int = 64
    """height and width of images"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the frozen weights and the activations"""
    compile: bool = False
    """time the compiled model"""
    checkpointing: bool = False
    """recompute every block in backward, as the model does it itself"""
    plain: bool = False
    """also time every method by plain autograd, without the fused products"""
    dense: bool = False
    """also time every method as base(x) + x Delta W, with Delta W formed anew by every target"""
    merged: bool = False
    """also time the first method once it is merged"""
    keep_memory: bool = True
    """let the C library keep what is freed, as on CUDA; else the kernel's zeroing of new pages is timed too"""
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    """of methods that generate a factor, from every input anew"""
    rounds: int = 11
    """interleaved repetitions"""
