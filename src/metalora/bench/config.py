"""What a bench times; this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from metalora._util.number_range import Items, Range
from metalora.config import ConditionConfig, Configuration


@dataclass(frozen=True)
class BenchConfig(Configuration):
    """A model, its inputs, and the adapters that are compared with the frozen model and with PEFT's tuners."""

    model: str = "minilm"
    """minilm, timm:NAME or a known architecture (roberta-base), all with random weights, or hf:FOLDER"""
    methods: tuple[str, ...] = ("lora", "metatt-4d", "metatt-5d", "lotr", "tenslora-qkv-depth")
    """methods of this library that are compared"""
    peers: tuple[str, ...] = ("lora",)
    """tuners of PEFT, at the same targets: lora, vera, lokr, loha"""
    rank: Annotated[int, Range(least=1)] = 8
    """rank of every method and tuner"""
    ranks: Annotated[dict[str, int], Range(least=1)] = field(default_factory=dict)
    """ranks of single methods and tuners by name, such as vera 1024 'peft: vera' 1024; the others have `rank`"""
    clip_rank: bool = True
    """lower a rank to what the sizes of the modes allow; otherwise a published rank may exceed them"""
    targets: Annotated[str | tuple[str, ...], Items()] = ("query", "key", "value")
    """which modules are adapted, as in `AdapterConfig`"""
    tasks: Annotated[int, Range(least=1)] = 1
    """number of tasks, for methods with a task mode; the examples of a batch take turns in them"""
    layers: Annotated[int, Range(least=1)] = 6
    """number of layers of minilm's shape"""
    batch: Annotated[int, Range(least=1)] = 16
    """examples of a batch"""
    tokens: Annotated[int, Range(least=1)] = 128
    """tokens of a text"""
    size: Annotated[int, Range(least=1)] = 64
    """height and width of an image"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """data type of the frozen weights and of the activations"""
    compile: Literal["default", "reduce-overhead"] | None = None
    """compile the models by `torch.compile` in this mode, and time them; reduce-overhead records CUDA graphs"""
    checkpointing: bool = False
    """recompute each block in the backward, by the model's own switch"""
    plain: bool = False
    """also time each method by plain autograd, without the fused products"""
    dense: bool = False
    """also time each method as base(x) + x Delta W, with Delta W formed anew at each target"""
    features_given: bool = False
    """also time each method that generates a factor with features that were computed before: what is left is the cost
    of the pass for them"""
    merged: bool = False
    """also time the first method after it is merged"""
    keep_memory: bool = True
    """let the C library keep freed memory, as CUDA does; otherwise the kernel's zeroing of new pages is timed too"""
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    """for methods that generate a factor; the factor is generated anew from each input"""
    rounds: Annotated[int, Range(least=1)] = 11
    """interleaved repetitions"""
