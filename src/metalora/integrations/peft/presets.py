"""Presets: a configuration class per family of methods. PEFT saves and loads all of them as TensorNetworkConfig."""

from dataclasses import dataclass
from typing import ClassVar

from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.methods.registry import METHODS


def _family(*prefixes: str) -> tuple[str, ...]:
    """The methods whose names start with one of the prefixes, so that a new method of a family has its preset."""
    return tuple(name for name in METHODS if name.startswith(prefixes))


@dataclass
class MetaLoRAConfig(TensorNetworkConfig):
    """MetaLoRA: factors that a mapping net generates, in CP, tensor-ring or square form.

    Example:
        >>> MetaLoRAConfig(method="metalora-tr", r=2).method
        'metalora-tr'
    """

    family: ClassVar[tuple[str, ...]] = _family("metalora")
    method: str = "metalora-cp"


@dataclass
class MetaTTConfig(TensorNetworkConfig):
    """MetaTT: one tensor train for a whole transformer.

    Example:
        >>> MetaTTConfig(r=8).method
        'metatt-4d'
    """

    family: ClassVar[tuple[str, ...]] = _family("metatt")
    method: str = "metatt-4d"


@dataclass
class TensLoRAConfig(TensorNetworkConfig):
    """TensLoRA: the LoRAs of attention stacked into Tucker tensors (or CP, tensor trains or rings).

    Example:
        >>> TensLoRAConfig(r=4).method
        'tenslora-qkv-depth'
    """

    family: ClassVar[tuple[str, ...]] = _family("tenslora")
    method: str = "tenslora-qkv-depth"


@dataclass
class LoTRConfig(TensorNetworkConfig):
    """LoTR: outer factors that all layers share, and a core per layer.

    Example:
        >>> LoTRConfig(r=4).method
        'lotr'
    """

    family: ClassVar[tuple[str, ...]] = _family("lotr")
    method: str = "lotr"


@dataclass
class FacTConfig(TensorNetworkConfig):
    """FacT: all updates of a model as one tensor train or Tucker tensor.

    Example:
        >>> FacTConfig(method="fact-tk", r=4).method
        'fact-tk'
    """

    family: ClassVar[tuple[str, ...]] = _family("fact")
    method: str = "fact-tt"


@dataclass
class LoRTAConfig(TensorNetworkConfig):
    """LoRTA: a CP tensor over in, heads, layers and projections.

    Example:
        >>> LoRTAConfig(r=4).method
        'lorta'
    """

    family: ClassVar[tuple[str, ...]] = _family("lorta")
    method: str = "lorta"


@dataclass
class CaRAConfig(TensorNetworkConfig):
    """CaRA: the CP tensor of multi-head attention.

    Example:
        >>> CaRAConfig(r=4).method
        'cara'
    """

    family: ClassVar[tuple[str, ...]] = _family("cara")
    method: str = "cara"


@dataclass
class MultiLoRAConfig(TensorNetworkConfig):
    """Multi-LoRA: a weighted sum of LoRAs.

    Example:
        >>> MultiLoRAConfig(experts=3, r=4).method
        'multi-lora'
    """

    family: ClassVar[tuple[str, ...]] = _family("multi-lora")
    method: str = "multi-lora"


@dataclass
class MoELoRAConfig(TensorNetworkConfig):
    """MoE-LoRA: a soft mixture of LoRAs, with one gate or a gate per task.

    Example:
        >>> MoELoRAConfig(experts=3, r=4).method
        'moe-lora'
    """

    family: ClassVar[tuple[str, ...]] = _family("moe-lora")
    method: str = "moe-lora"


@dataclass
class MultiTaskLoRAConfig(TensorNetworkConfig):
    """LoRA for several tasks: MTL-LoRA, MTLoRA, or one LoRA per task.

    Example:
        >>> MultiTaskLoRAConfig(tasks=3, r=4).method
        'mtl-lora'
    """

    family: ClassVar[tuple[str, ...]] = _family("mtl-lora", "mtlora", "task-lora")
    method: str = "mtl-lora"


@dataclass
class TTLoRAConfig(TensorNetworkConfig):
    """TT-LoRA and LoRETTA_rep: tensor trains of weights whose axes are split into digits.

    Example:
        >>> TTLoRAConfig(r=4).method
        'tt-lora'
    """

    family: ClassVar[tuple[str, ...]] = _family("tt-lora", "loretta-rep")
    method: str = "tt-lora"
