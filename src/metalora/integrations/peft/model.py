"""The tuner: one PEFT type for all methods, several of which may be on one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import build
from metalora.adapters.targets import Target
from metalora.integrations.peft.bank import BANK, BASE, AdapterContainer, container_of
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.layers import KINDS, AdaptedModule, TunerLayer
from metalora.integrations.peft.placement import check_frozen, described, resolved, resolved_ranks
from metalora.integrations.peft.registration import PREFIX

TASKS = "metalora_task_ids"  # PeftModels for language take `task_ids` themselves, and drop it


class TensorNetworkModel(BaseTuner):
    """Puts adapters of `TensorNetworkConfig`s into a model; made by `peft.get_peft_model`."""

    prefix = PREFIX
    tuner_layer_cls = TunerLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    # ---- injection -------------------------------------------------------------------------------------------------
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's; an adapter of the same name is replaced."""
        bank = container_of(model)
        if bank is not None and adapter_name in bank.metalora_adapters:
            bank.delete_adapter(adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    @staticmethod
    def _check_target_module_exists(config: TensorNetworkConfig, key: str) -> Any:
        if key.split(".")[0] == BANK:
            return False
        matched = check_target_module_exists(config, key)
        if config.placement is None:
            return matched
        return key in config.placement["targets"] or (False if matched else matched)

    def _create_and_replace(
        self,
        config: TensorNetworkConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        bank = getattr(self.model, BANK, None)
        if bank is None or adapter_name not in bank.metalora_adapters:
            bank = self._add(config, adapter_name, AdapterContainer(self.model) if bank is None else bank)
        adapter = bank.metalora_adapters[adapter_name]
        layer = target
        if not isinstance(target, AdaptedModule):
            kind = adapter.targets[current_key].kind
            layer = KINDS.get(kind, AdaptedModule)(target, bank, adapter.targets[current_key])
            self._replace_module(parent, target_name, layer, target)
        layer.cells[adapter_name] = adapter.layers[current_key]

    def _add(self, config: TensorNetworkConfig, adapter_name: str, bank: AdapterContainer) -> AdapterContainer:
        """Make the adapter of all targets, and give it to the bank; nothing is changed if that fails."""
        paths = [path for path in bank.targets if path and self._check_target_module_exists(config, path)]
        try:
            targets = resolved(self.model, config, {path: bank.targets[path] for path in paths})
            adapter = self._build(config, adapter_name, bank, targets)
        except BaseException:
            if bank is not getattr(self.model, BANK, None):
                for handle in bank.handles:
                    handle.remove()
            raise
        setattr(self.model, BANK, bank)
        bank.metalora_adapters[adapter_name] = adapter
        return bank

    def _build(
        self, config: TensorNetworkConfig, adapter_name: str, bank: AdapterContainer, targets: list[Target]
    ) -> Adapter:
        modules = {target.path: self.model.get_submodule(target.path) for target in targets}
        bases = {path: getattr(module, "base_layer", module) for path, module in modules.items()}
        own = config.adapter_config(tuple(bases), resolved_ranks(config, list(bases)))
        with bank.rest():
            adapter = build(self.model, own, targets, bases)
        check_frozen(config, adapter)
        if adapter_name in {part for key in adapter.state_dict() for part in key.split(".")}:
            raise ValueError(f"adapter name {adapter_name!r}: a part of the factors' names, which PEFT would leave out")
        return adapter.train(self.model.training)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        adapter = container_of(self.model).metalora_adapters[adapter_name]
        weight = next(iter(adapter.layers.values())).base.weight
        if not autocast_adapter_dtype and weight.is_floating_point():
            adapter.to(weight.dtype)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        container_of(model).leave(model)
        return model

    # ---- a batch ---------------------------------------------------------------------------------------------------
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model with its hooks, which make the adapters ready; PEFT before 0.21 goes past them."""
        return self.model(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        ids = kwargs.get(TASKS, kwargs.get("task_ids"))
        bank, handles = container_of(self.model), []
        beams = _sequences_per_example(kwargs)
        if names is not None:
            self._check_names(names, bank)
            handles = self._hook_saved_modules(names, beams)
        try:
            with bank.batch(names, kwargs.get("condition"), ids, beams):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_names(self, names: list[str], bank: AdapterContainer) -> None:
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = sorted({*names} - {BASE, *bank.metalora_adapters})
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        if any(isinstance(m, AdaptedModule) and m.merged for m in self.model.modules()):
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    def _hook_saved_modules(self, names: list[str], beams: int) -> list[Any]:
        """Hand modules_to_save the names, those of an encoder without the beams."""
        encoder = getattr(self.model, "get_encoder", lambda: None)()
        inside = {id(m) for m in encoder.modules()} if encoder is not None and encoder is not self.model else set()
        handles = []
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                own = names if id(module) in inside else [name for name in names for _ in range(beams)]
                hook = partial(_with_names, names=own)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    # ---- files -----------------------------------------------------------------------------------------------------
    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: Any, unwanted_adapter_names: list[str]
    ) -> dict[str, Tensor]:
        config.made(described(container_of(model).metalora_adapters[adapter_name]))
        mine = f"{BANK}.metalora_adapters.{adapter_name}."
        return {key: value for key, value in state_dict.items() if mine in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f"{BANK}.metalora_adapters.{adapter_name}.", f"{BANK}.metalora_adapters.")


def _with_names(module: nn.Module, args: Any, kwargs: dict[str, Any], names: list[str]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _sequences_per_example(kwargs: Mapping[str, Any]) -> int:
    """How many sequences `generate` makes of one example, told by its arguments; 1 outside of it."""
    config = kwargs.get("generation_config")
    asked = [kwargs.get(key, getattr(config, key, None)) for key in ("num_beams", "num_return_sequences")]
    return max(count if isinstance(count, int) else 1 for count in asked)
