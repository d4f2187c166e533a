"""What PEFT 0.18 to 0.20 do otherwise: no backends of quantised layers before 0.20, no say of a tuner in its files."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import save_and_load
from torch import nn

from metalora.integrations.peft.registration import NAME, PREFIX

try:
    from peft.utils import resolve_quantization_backend
except ImportError:

    def resolve_quantization_backend(base_layer: nn.Module) -> None:
        """None: every quantised layer is refused."""


__all__ = ["ask_for_files", "resolve_quantization_backend"]


def ask_for_files(tuner: Any) -> None:
    """Let PEFT's function for an adapter's state ask this tuner, as PEFT 0.21 does by itself."""
    if hasattr(BaseTuner, "_get_adapter_state_dict"):
        return
    original = save_and_load.get_peft_model_state_dict

    @wraps(original)
    def get_peft_model_state_dict(
        model: nn.Module,
        state_dict: dict[str, Any] | None = None,
        adapter_name: str = "default",
        unwrap_compiled: bool = False,
        save_embedding_layers: bool | str = "auto",
    ) -> dict[str, Any]:
        model = getattr(model, "_orig_mod", model) if unwrap_compiled else model
        config = model.peft_config[adapter_name]
        if config.peft_type != NAME:
            return original(model, state_dict, adapter_name, False, save_embedding_layers)
        state = model.state_dict() if state_dict is None else state_dict
        mine = tuner._get_adapter_state_dict(model, config, adapter_name, state, [])
        rest = {key: value for key, value in state.items() if f".{PREFIX}adapters." not in key}
        found = original(model, rest, adapter_name, False, save_embedding_layers)
        return found | {tuner._remove_adapter_name_from_key(key, adapter_name): value for key, value in mine.items()}

    for module in list(sys.modules.values()):  # all that have imported it by name
        if vars(module).get(original.__name__) is original:
            setattr(module, original.__name__, get_peft_model_state_dict)
