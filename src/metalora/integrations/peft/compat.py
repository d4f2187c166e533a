"""What PEFT 0.18 to 0.20 lack: backends of quantised layers (before 0.20), and a tuner's say in its files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import save_and_load
from torch import Tensor, nn

from metalora.integrations.peft.peft_api import QuantizationBackend
from metalora.integrations.peft.registration import NAME, PREFIX

try:
    from peft.utils import resolve_quantization_backend
except ImportError:

    def resolve_quantization_backend(base_layer: nn.Module) -> QuantizationBackend | None:
        """Return None, so that every quantised layer is refused."""
        return None


__all__ = ["patch_state_dict_of_adapters", "resolve_quantization_backend"]


class SavingTuner(Protocol):
    """A tuner class that says which tensors of a model belong to an adapter's file, and under which names."""

    def _get_adapter_state_dict(
        self, model: nn.Module, config: Any, adapter_name: str, state_dict: Any, unwanted_adapter_names: list[str]
    ) -> dict[str, Tensor]: ...

    def _remove_adapter_name_from_key(self, key: str, adapter_name: str) -> str: ...


def patch_state_dict_of_adapters(tuner: SavingTuner) -> None:
    """Make PEFT's `get_peft_model_state_dict` ask this tuner, as PEFT 0.21 does by itself.

    Args:
        tuner: The tuner class.
    """
    if hasattr(BaseTuner, "_get_adapter_state_dict"):
        return
    name = "get_peft_model_state_dict"
    original: Callable[..., dict[str, Any]] = getattr(save_and_load, name)

    @wraps(original)
    def get_peft_model_state_dict(
        model: Any,
        state_dict: dict[str, Any] | None = None,
        adapter_name: str = "default",
        unwrap_compiled: bool = False,
        save_embedding_layers: bool | str = "auto",
    ) -> dict[str, Any]:
        # torch.compile wraps the model and keeps it under this name.
        model = getattr(model, "_orig_mod", model) if unwrap_compiled else model
        config = model.peft_config[adapter_name]
        if config.peft_type != NAME:
            return original(model, state_dict, adapter_name, False, save_embedding_layers)
        all_tensors = model.state_dict() if state_dict is None else state_dict
        adapter_tensors = tuner._get_adapter_state_dict(model, config, adapter_name, all_tensors, [])
        # PEFT's own function adds the other tensors of the file, such as those of modules_to_save.
        other_tensors = {key: value for key, value in all_tensors.items() if f".{PREFIX}adapters." not in key}
        tensors = dict(original(model, other_tensors, adapter_name, False, save_embedding_layers))
        for key, value in adapter_tensors.items():
            tensors[tuner._remove_adapter_name_from_key(key, adapter_name)] = value
        return tensors

    for module in list(sys.modules.values()):  # other modules of PEFT have imported the function by its name
        if vars(module).get(name) is original:
            setattr(module, name, get_peft_model_state_dict)
