"""Every method of this library as a tuner of PEFT, which knows it once this package is imported."""

from metalora.peft.bank import adapter_of
from metalora.peft.card import keep_when_pushed
from metalora.peft.compat import ask_for_files
from metalora.peft.config import TensorNetworkConfig
from metalora.peft.loading import load
from metalora.peft.model import TensorNetworkModel
from metalora.peft.presets import (
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
from metalora.peft.registration import register
from metalora.peft.wrapping import wrap

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
