"""The classes of PEFT that this package extends, with the types of what it uses of them.

The type checker does not follow imports of PEFT, because most of its functions have no annotations. At run time the
names are PEFT's own classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

__all__ = ["BaseTuner", "BaseTunerLayer", "PeftConfig", "QuantizationBackend"]


class QuantizationBackend(Protocol):
    """What PEFT knows about the weights of one quantisation library."""

    def get_base_weight(self, base_layer: nn.Module) -> Tensor:
        """The weight (*weight) of a quantised layer as floating-point numbers, in the layout of the layer."""

    def set_base_weight(self, tuner_layer: BaseTunerLayer, weight: Tensor) -> None:
        """Quantise a weight (*weight) and put it into the base of a tuner's layer."""


if TYPE_CHECKING:

    class PeftConfig:
        """A configuration that PEFT writes as adapter_config.json."""

        peft_type: Any  # a member of PeftType, which is extended in registration.py

        def __post_init__(self) -> None: ...
        @classmethod
        def from_pretrained(
            cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
        ) -> PeftConfig: ...
        def to_dict(self) -> dict[str, Any]: ...
        def save_pretrained(self, save_directory: str, **kwargs: Any) -> None: ...

    class BaseTunerLayer:
        """A module that holds the weights of adapters, or adds them to its base."""

        adapter_layer_names: tuple[str, ...]
        other_param_names: tuple[str, ...]
        merged_adapters: list[str]
        quantization_backend: QuantizationBackend | None
        _active_adapter: str | list[str]

        @property
        def merged(self) -> bool: ...
        @property
        def disable_adapters(self) -> bool: ...
        @property
        def active_adapter(self) -> str | list[str]: ...
        @property
        def active_adapters(self) -> list[str]: ...
        def delete_adapter(self, adapter_name: str) -> None: ...

    class BaseTuner(nn.Module):
        """The part of a PeftModel that puts one kind of adapter into the base model."""

        model: nn.Module
        prefix: ClassVar[str]
        tuner_layer_cls: ClassVar[type[BaseTunerLayer]]
        target_module_mapping: ClassVar[Any]

        def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None: ...
        def disable_adapter_layers(self) -> None: ...
        def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any: ...
        def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None: ...
        def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None: ...
        def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module: ...
        def _replace_module(
            self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
        ) -> None: ...

else:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
