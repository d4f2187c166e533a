"""Every method of this library as a tuner of PEFT, which knows it once this package is imported."""

from metalora.integrations.peft.bank import adapter_of
from metalora.integrations.peft.card import keep_when_pushed
from metalora.integrations.peft.compat import ask_for_files
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.loading import load
from metalora.integrations.peft.model import TensorNetworkModel
from metalora.integrations.peft.presets import (
    CaRAConfig,
    FacTConfig,
    LoRTAConfig,
    LoTRConfig,
    MetaLoRAConfig,
    MetaTTConfig,
    MoELoRAConfig,
    MultiLoRAConfig,
    MultiTaskLoRAConfig,
    TensLoRAConfig,
    TTLoRAConfig,
)
from metalora.integrations.peft.registration import register
from metalora.integrations.peft.wrapping import wrap

register(TensorNetworkConfig, TensorNetworkModel)
ask_for_files(TensorNetworkModel)
keep_when_pushed()

__all__ = [
    "CaRAConfig",
    "FacTConfig",
    "LoRTAConfig",
    "LoTRConfig",
    "MetaLoRAConfig",
    "MetaTTConfig",
    "MoELoRAConfig",
    "MultiLoRAConfig",
    "MultiTaskLoRAConfig",
    "TTLoRAConfig",
    "TensLoRAConfig",
    "TensorNetworkConfig",
    "TensorNetworkModel",
    "adapter_of",
    "load",
    "wrap",
]
