"""The methods under which PEFT's tests run, as configurations whose defaults fit its tiny models.

Its tests build a configuration from `target_modules` alone, and train at fixed rates: alpha keeps them finite.
"""

from dataclasses import dataclass, field
from typing import Any

from metalora.peft import LoRTAConfig, LoTRConfig, MetaLoRAConfig, MetaTTConfig, TensLoRAConfig


@dataclass
class MetaTT4D(MetaTTConfig):
    r: int = 4
    alpha: float | None = 0.5
    clip_rank: bool = True


@dataclass
class LoTR(LoTRConfig):
    r: int = 4
    alpha: float | None = 0.5
    clip_rank: bool = True


@dataclass
class TensLoRAQKVDepth(TensLoRAConfig):
    method: str = "tenslora-qkv-depth"
    r: int = 4
    alpha: float | None = 0.5
    clip_rank: bool = True


@dataclass
class LoRTA(LoRTAConfig):
    r: int = 4
    alpha: float | None = 0.5
    clip_rank: bool = True
    head_dim: int | None = 1


@dataclass
class MetaLoRACP(MetaLoRAConfig):
    r: int = 4
    alpha: float | None = 0.5
    clip_rank: bool = True
    condition: dict[str, Any] = field(default_factory=lambda: {"scope": "constant"})


FAMILIES = {
    "metatt-4d": MetaTT4D,
    "lotr": LoTR,
    "tenslora-qkv-depth": TensLoRAQKVDepth,
    "lorta": LoRTA,
    "metalora-cp": MetaLoRACP,
}
