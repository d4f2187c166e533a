"""Every method of this library as a tuner of Hugging Face PEFT. Importing this package registers the tuner."""

from metalora.integrations.peft.card import patch_push_to_hub
from metalora.integrations.peft.compat import patch_state_dict_of_adapters
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.container import adapter_of
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
patch_state_dict_of_adapters(TensorNetworkModel)
patch_push_to_hub()

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
