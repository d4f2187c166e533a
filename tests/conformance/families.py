"""The methods under which PEFT's tests run, as configurations whose defaults fit its tiny models.

PEFT's tests build a configuration from `target_modules` alone, and train at fixed rates: `alpha` keeps the updates
finite.
"""

from dataclasses import dataclass, field
from typing import Any

from metalora.peft import LoRTAConfig, LoTRConfig, MetaLoRAConfig, MetaTTConfig, TensLoRAConfig


@dataclass
class TinyDefaults:
    """Defaults that fit the tests' models and learning rates."""

    r: int = 4
    alpha: float | None = 0.5
    clip_rank: bool = True


@dataclass
class MetaTT4D(TinyDefaults, MetaTTConfig):
    """MetaTT-4D."""


@dataclass
class LoTR(TinyDefaults, LoTRConfig):
    """LoTR."""


@dataclass
class TensLoRAQKVDepth(TinyDefaults, TensLoRAConfig):
    """TensLoRA over query, key, value and the depth."""

    method: str = "tenslora-qkv-depth"


@dataclass
class LoRTA(TinyDefaults, LoRTAConfig):
    """LoRTA; its heads are as wide as the tests' narrowest layer allows."""

    head_dim: int | None = 1


@dataclass
class MetaLoRACP(TinyDefaults, MetaLoRAConfig):
    """MetaLoRA in CP form, with learned factors in place of generated ones: PEFT's tests give no condition."""

    condition: dict[str, Any] = field(default_factory=lambda: {"scope": "constant"})


FAMILIES = {
    "metatt-4d": MetaTT4D,
    "lotr": LoTR,
    "tenslora-qkv-depth": TensLoRAQKVDepth,
    "lorta": LoRTA,
    "metalora-cp": MetaLoRACP,
}
"""Name on the command line -> configuration class."""
