"""The models of the GPU bench with their adapters, in real size and in a tiny size for a dry run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import nn

from metalora.bench.cases import PEFT, TRITON, Inputs, build_model, freeze
from metalora.bench.config import BenchConfig
from metalora.bench.device import bench_device
from metalora.config import ConditionConfig
from metalora.zoo import build_architecture

Precision = Literal["float32", "bfloat16"]
CompileMode = Literal["default", "reduce-overhead"]


@dataclass(frozen=True)
class Setup:
    """A model and the adapters that are measured on it.

    Attributes:
        bench: The model, its batch and its targets.
        ranks: Case -> rank. The frozen model is always a case.
        sizes: Sizes that replace those of the architecture.
        causal: The model is a decoder with the head of a language model.
        new_tokens: Tokens that are generated, for one prompt and for 64; 0: no generation.
    """

    bench: BenchConfig
    ranks: dict[str, int]
    sizes: dict[str, int] = field(default_factory=dict)
    causal: bool = False
    new_tokens: int = 0

    def described(self) -> dict[str, Any]:
        """What the setup measures, as it stands in a row."""
        return {
            "model": self.bench.model,
            "sizes": self.sizes,
            "targets": self.bench.targets,
            "batch": self.bench.batch,
            "tokens": self.bench.tokens,
            "size": self.bench.size,
            "dtype": self.bench.dtype,
            "compile": self.bench.compile,
            "ranks": self.ranks,
            "new_tokens": self.new_tokens,
        }


# ---- real sizes ----------------------------------------------------------------------------------------------------
def table_20(architecture: str, dtype: Precision, vera_rank: int, metatt_rank: int) -> Setup:
    """Table 20 of MetaTT (arXiv:2506.09105): a batch of 64, query and value, each method at its published rank."""
    bench = BenchConfig(
        model=architecture, dtype=dtype, targets=("query", "value"), clip_rank=False, batch=64, tokens=128, rounds=7
    )
    ranks = {
        PEFT + "lora": 8,
        PEFT + "vera": vera_rank,
        "lora": 8,
        "vera": vera_rank,
        "metatt-4d": metatt_rank,
        "metatt-5d": 64,
    }
    return Setup(bench, ranks)


def small_batch(dtype: Precision, compile: CompileMode | None = None, triton: bool = False) -> Setup:
    """RoBERTa-base on 8 x 128 tokens, a step so short that the calls of kernels take a large part of it.

    Args:
        dtype: Type of the model.
        compile: Compile each case in this mode.
        triton: Add the cases of this library with Triton's kernels.
    """
    bench = BenchConfig(
        model="roberta-base",
        dtype=dtype,
        targets=("query", "value"),
        clip_rank=False,
        batch=8,
        tokens=128,
        rounds=21,
        compile=compile,
    )
    own = {"lora": 8} if compile else {"lora": 8, "metatt-4d": 24}  # a case takes 20 seconds to compile
    return Setup(bench, {PEFT + "lora": 8} | own | ({name + TRITON: own[name] for name in own} if triton else {}))


def resnet50(dtype: Precision = "float32") -> Setup:
    """ResNet-50 on pictures of 224 x 224, all convolutions."""
    condition = ConditionConfig(source="stem", stem="maxpool")
    bench = BenchConfig(
        model="timm:resnet50", dtype=dtype, targets="conv", condition=condition, batch=64, size=224, rounds=7
    )
    return Setup(bench, {PEFT + "lora": 8, "lora": 8, "metalora-cp": 8})


def vit_large() -> Setup:
    """ViT-L/16 on pictures of 224 x 224, the joint projection to queries, keys and values."""
    bench = BenchConfig(
        model="timm:vit_large_patch16_224", dtype="bfloat16", targets=("qkv",), batch=64, size=224, rounds=7
    )
    return Setup(bench, {PEFT + "lora": 8, "lora": 8})


def llama() -> Setup:
    """A decoder of 1.1 billion parameters: Llama 3.2 1B with a vocabulary of 32,000."""
    bench = BenchConfig(
        model="llama-3.2-1b",
        dtype="bfloat16",
        targets=("q_proj", "v_proj"),
        clip_rank=False,
        batch=4,
        tokens=512,
        rounds=5,
    )
    ranks = {PEFT + "lora": 8, "lora": 8, "metatt-4d": 16}
    return Setup(bench, ranks, sizes={"vocab_size": 32_000}, causal=True, new_tokens=16)


# ---- a tiny size ---------------------------------------------------------------------------------------------------
TINY_IMAGES = {"timm:resnet50": "timm:resnet10t", "timm:vit_large_patch16_224": "timm:vit_tiny_patch16_224"}


def tiny(setup: Setup) -> Setup:
    """The same cases with the smallest shapes."""
    ranks = dict.fromkeys(setup.ranks, 2)
    if setup.bench.model in TINY_IMAGES:
        size = 32 if "resnet" in setup.bench.model else setup.bench.size  # this ViT takes pictures of one size only
        bench = replace(setup.bench, model=TINY_IMAGES[setup.bench.model], batch=2, size=size, rounds=1)
        return replace(setup, bench=bench, ranks=ranks)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    sizes |= {"vocab_size": 50}
    # Llama's heads share keys and values; RoBERTa does not know the setting.
    if setup.causal:
        sizes |= {"num_key_value_heads": 1}
    bench = replace(setup.bench, batch=2, tokens=4, rounds=1)
    return Setup(bench, ranks, sizes, setup.causal, min(setup.new_tokens, 2))


# ---- building ------------------------------------------------------------------------------------------------------
def base_and_inputs(setup: Setup) -> tuple[nn.Module, Inputs]:
    """Build the frozen model with random weights, and a batch for it.

    Returns:
        The model, and its inputs: `input_ids` (batch, tokens), for an encoder with an `attention_mask`, or `x` (batch,
        3, size, size).
    """
    bench = setup.bench
    if bench.model.startswith("timm:"):
        return build_model(bench)
    torch.manual_seed(0)
    device, dtype = bench_device(), getattr(torch, bench.dtype)
    model = build_architecture(bench.model, device=device, causal=setup.causal, **setup.sizes).to(dtype)
    vocabulary = cast(Any, model).get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (bench.batch, bench.tokens)).to(device)
    if setup.causal:
        cast(Any, model).config.use_cache = False  # a training step has no use for the keys and values
        return freeze(model), {"input_ids": ids}
    return freeze(model), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
