"""The methods under which PEFT's tests run, as configurations whose defaults fit its tiny models.

Its tests build a configuration from `target_modules` alone, and train at fixed rates: alpha keeps them finite.
"""

from dataclasses import dataclass, field
from typing import Any

from metalora.peft import LoRTAConfig, LoTRConfig, MetaLoRAConfig, MetaTTConfig, TensLoRAConfig


@dataclass
class Tiny:
    """What fits the tests' models and rates."""

    r: int = 4
    alpha: float | None = 0.5
    clip_rank: bool = True


@dataclass
class MetaTT4D(Tiny, MetaTTConfig):
    """MetaTT-4D."""


@dataclass
class LoTR(Tiny, LoTRConfig):
    """LoTR."""


@dataclass
class TensLoRAQKVDepth(Tiny, TensLoRAConfig):
    method: str = "tenslora-qkv-depth"


@dataclass
class LoRTA(Tiny, LoRTAConfig):
    head_dim: int | None = 1


@dataclass
class MetaLoRACP(Tiny, MetaLoRAConfig):
    condition: dict[str, Any] = field(default_factory=lambda: {"scope": "constant"})


FAMILIES = {
    "metatt-4d": MetaTT4D,
    "lotr": LoTR,
    "tenslora-qkv-depth": TensLoRAQKVDepth,
    "lorta": LoRTA,
    "metalora-cp": MetaLoRACP,
}
