"""The tuner: one PEFT type for all methods, several of which may be on one model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metalora._util.user_warning import warn_user
from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import build
from metalora.adapters.conditioning.generation import sequences_per_example
from metalora.adapters.skipped import warning_of
from metalora.adapters.targets import Target
from metalora.fitting.combination import Sign, combine_updates
from metalora.fitting.updates import LowRankUpdate
from metalora.integrations.peft.calls import TASK_IDS_KEYWORD
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.container import (
    BASE_NAME,
    CONTAINER_NAME,
    AdapterContainer,
    TunerLayer,
    container_of,
    first_base_weight,
    layers_of,
    required_container,
)
from metalora.integrations.peft.layers import LAYER_CLASSES, AdaptedModule
from metalora.integrations.peft.peft_api import BaseTuner
from metalora.integrations.peft.registration import PREFIX
from metalora.integrations.peft.saved_layout import check_frozen_factors, check_saved_shapes, saved_values
from metalora.integrations.peft.target_resolution import (
    ALL_LINEAR,
    check_patterns_of,
    is_all_linear,
    resolve_targets,
    skipped_by_all_linear,
    without_refused,
)
from metalora.integrations.peft.weighted import lora_config, parse_type, updates_by_name
from metalora.io.lora.import_ import set_factors


class TensorNetworkModel(BaseTuner):
    """Puts the adapters of `TensorNetworkConfig`s into a model; `peft.get_peft_model` makes it.

    Example:
        >>> import peft, torch, metalora.peft
        >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> model = peft.get_peft_model(base, metalora.peft.LoTRConfig(r=2, target_modules=["0"]))
        >>> type(model.base_model).__name__
        'TensorNetworkModel'
    """

    prefix = PREFIX
    tuner_layer_cls = TunerLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    # ---- injection -------------------------------------------------------------------------------------------------
    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model as PEFT does; an adapter of the same name is replaced."""
        container = container_of(model)
        # Otherwise `_create_and_replace` would take the adapter that is there for the new one.
        if container is not None and adapter_name in container.adapters_by_name():
            container.delete_adapter(adapter_name)
        config = cast(Mapping[str, Any], self.peft_config)[adapter_name]
        check_patterns_of(model, config)
        # Before PEFT replaces "all-linear" by names and the layers by adapted ones.
        self._all_linear = is_all_linear(config)
        skipped = skipped_by_all_linear(model, config) if self._all_linear else ()
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        adapter = required_container(model).adapters_by_name()[adapter_name]
        adapter.skipped = tuple(weight for weight in skipped if weight.path not in adapter.targets)
        warning = warning_of(adapter.skipped, ALL_LINEAR, type(model).__name__)
        if warning is not None:
            warn_user(warning)

    @staticmethod
    def _check_target_module_exists(config: TensorNetworkConfig, key: str) -> Any:
        """Whether a module is a target. PEFT's result may also be an object that says why it is not one."""
        if key.split(".")[0] == CONTAINER_NAME:
            return False
        matched = check_target_module_exists(config, key)
        if config.placement is None:
            return matched
        # A loaded adapter has the targets with which it was saved, also if its patterns match more modules here.
        if key in config.placement["targets"]:
            return True
        return False if matched else matched

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
        """Adapt one target. The adapter's first target makes the adapter, because its targets share factors."""
        container = self._container_with(adapter_name, config)
        adapter = container.adapters_by_name()[adapter_name]
        if self._all_linear and current_key not in adapter.targets:
            return  # a layer that cannot be adapted; `inject_adapter` warns of it
        module = target
        if not isinstance(module, AdaptedModule):
            resolved_target = adapter.targets[current_key]
            layer_class = LAYER_CLASSES.get(resolved_target.kind, AdaptedModule)
            module = layer_class(target, container, resolved_target)
            self._replace_module(parent, target_name, module, target)
        layer = layers_of(adapter)[current_key]
        module.adapter_layers[adapter_name] = layer
        module.is_computed_with = layer.is_computed_with

    def _container_with(self, adapter_name: str, config: TensorNetworkConfig) -> AdapterContainer:
        """The model's container with the adapter of this name; both are made if they are missing.

        If the adapter cannot be made, the model is not changed.
        """
        existing: AdapterContainer | None = getattr(self.model, CONTAINER_NAME, None)
        if existing is not None and adapter_name in existing.adapters_by_name():
            return existing
        container = AdapterContainer(self.model) if existing is None else existing
        try:
            adapter = self._build_adapter(config, adapter_name, container)
        except BaseException:
            if existing is None:  # a new container has replaced the model's forward already
                container.remove_hooks()
            raise
        setattr(self.model, CONTAINER_NAME, container)
        container.metalora_adapters[adapter_name] = adapter
        return container

    def _build_adapter(self, config: TensorNetworkConfig, adapter_name: str, container: AdapterContainer) -> Adapter:
        """Make the adapter of all targets of a configuration, and a layer around each target's base."""
        targets = self._targets_of(config, container)
        bases = {}
        for target in targets:
            module = self.model.get_submodule(target.path)
            bases[target.path] = getattr(module, "base_layer", module)  # another adapter may be there already
        adapter_config = config.adapter_config(tuple(bases))
        check_saved_shapes(config, adapter_config, targets)
        with container.base_only():  # the width of a condition's features is found by a forward of the base
            adapter = build(self.model, adapter_config, targets, bases, extractor=config.extractor_from_caller())
        check_frozen_factors(config, adapter)
        adapter.started = adapter.started or config.placement is not None  # a saved adapter has had its data
        adapter.digest_in_file = (config.placement or {}).get("digest")
        if adapter_name in {part for key in adapter.state_dict() for part in key.split(".")}:
            raise ValueError(
                f"adapter name {adapter_name!r}: a part of the factors' names, so PEFT would leave factors of other "
                "adapters out of their files; choose another name"
            )
        return adapter.train(self.model.training)

    def _targets_of(self, config: TensorNetworkConfig, container: AdapterContainer) -> list[Target]:
        matched = {
            path: target
            for path, target in container.targets.items()
            if path and self._check_target_module_exists(config, path)
        }
        if self._all_linear:
            matched = without_refused(self.model, config, matched)
        return resolve_targets(self.model, config, matched)

    def _check_new_adapter_config(self, config: TensorNetworkConfig) -> None:
        """Accept several adapters with `bias`, which PEFT refuses: here every adapter has changes of its own."""

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        super()._mark_only_adapters_as_trainable(model)
        # PEFT would train the base's own biases for `bias="lora_only"`; here the adapter has their changes.
        for module in model.modules():
            if isinstance(module, AdaptedModule):
                module.base_layer.requires_grad_(False)

    def disable_adapter_layers(self) -> None:
        """Run the base alone; the biases of adapters are off too, so that PEFT's warning of them would be wrong."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Careful, disabling adapter layers with bias")
            super().disable_adapter_layers()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        adapter = required_container(self.model).adapters_by_name()[adapter_name]
        weight = first_base_weight(adapter)
        # As with PEFT's own tuners: without autocast the adapter has the precision of the base.
        if not autocast_adapter_dtype and weight.is_floating_point():
            adapter.to(weight.dtype)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        required_container(model).remove_from(model)
        return model

    # ---- several adapters as one -----------------------------------------------------------------------------------
    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: Sign = "total",
    ) -> None:
        """Add an adapter that combines others of any methods by their Delta W, with PEFT's arguments.

        The new adapter is a LoRA; it is frozen and not active, as PEFT leaves it.

        Args:
            adapters: Names of adapters of this model.
            weights: One for each.
            adapter_name: Name of the new adapter.
            combination_type: "cat" (exact, the ranks add), "svd" (the same, truncated), "ties_svd", "dare_linear_svd",
                "dare_ties_svd" or "magnitude_prune_svd".
            svd_rank: Largest rank of the new adapter; None: the largest rank of the others.
            svd_clamp: Not supported: clamped factors are no combination of Delta W.
            svd_full_matrices: Has no effect on the result, as in PEFT.
            svd_driver: Not supported.
            density: The part of the numbers that a type with pruning keeps.
            majority_sign_method: How TIES elects signs.

        Raises:
            ValueError: A type that combines A and B ("linear", "ties", ...), a name that is unknown or taken, an
                adapter with tasks, without a fixed condition or with modules_to_save, or an argument that means
                nothing to the type.

        Example:
            >>> import peft, torch, metalora.peft
            >>> base = torch.nn.Sequential(torch.nn.Linear(6, 4))
            >>> model = peft.get_peft_model(base, metalora.peft.LoTRConfig(r=2, target_modules=["0"]), "first")
            >>> config = metalora.peft.TensorNetworkConfig(method="vera", r=2, target_modules=["0"])
            >>> model.add_adapter("second", config)
            >>> model.add_weighted_adapter(["first", "second"], [0.7, 0.3], "both", combination_type="cat")
            >>> metalora.peft.adapter_of(model, "both").config.rank
            4
        """
        if svd_clamp is not None or svd_driver is not None:
            raise ValueError("add_weighted_adapter: svd_clamp and svd_driver are not supported; leave them out")
        if combination_type == "cat" and svd_rank is not None:
            raise ValueError("add_weighted_adapter: svd_rank means nothing to 'cat', whose ranks add; choose 'svd'")
        configs = cast(dict[str, TensorNetworkConfig], self.peft_config)
        if adapter_name in configs:
            raise ValueError(f"add_weighted_adapter: there is an adapter {adapter_name!r} already; delete it first")
        rule = parse_type(combination_type, density, majority_sign_method)
        updates = updates_by_name(adapters, required_container(self.model).adapters_by_name(), configs)
        if combination_type == "svd" and svd_rank is None:
            svd_rank = max((len(update.down) for by_path in updates for update in by_path.values()), default=None)
        products = combine_updates(updates, weights, rule, svd_rank)
        combined = {path: LowRankUpdate(product.left, product.right.mT) for path, product in products.items()}
        configs[adapter_name] = lora_config(combined, configs[adapters[0]])
        self.inject_adapter(self.model, adapter_name)
        adapter = required_container(self.model).adapters_by_name()[adapter_name]
        set_factors(adapter, combined)
        adapter.requires_grad_(False)

    # ---- a call of the model ---------------------------------------------------------------------------------------
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model through its hooks, which prepare the adapters; PEFT before 0.21 calls its `forward` itself."""
        return self.model(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Within this context the model runs with the arguments of one call of the PeftModel."""
        adapter_names = kwargs.get("adapter_names")
        task_ids = kwargs.get(TASK_IDS_KEYWORD, kwargs.get("task_ids"))
        container = required_container(self.model)
        beams = sequences_per_example(None, kwargs)
        handles: list[RemovableHandle] = []
        if adapter_names is not None:
            self._check_adapter_names(adapter_names, container)
            handles = self._pass_names_to_saved_modules(adapter_names, beams, container)
        try:
            with container.call_arguments(adapter_names, kwargs.get("condition"), task_ids, beams):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _check_adapter_names(self, adapter_names: Sequence[str], container: AdapterContainer) -> None:
        """Raise a ValueError, in PEFT's words, if a mixed batch cannot run."""
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = sorted({*adapter_names} - {BASE_NAME, *container.adapters_by_name()})
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        if any(isinstance(module, AdaptedModule) and module.merged for module in self.model.modules()):
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    def _pass_names_to_saved_modules(
        self, adapter_names: Sequence[str], beams: int, container: AdapterContainer
    ) -> list[RemovableHandle]:
        """Pass the adapter names to every module of modules_to_save, a name for each row that it gets.

        `generate` runs an encoder once per example, and all other modules once per beam.
        """
        names_by_beam = [name for name in adapter_names for _ in range(beams)]
        encoder_modules = self._modules_of_encoder()
        handles = []
        for module in self.model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                names = adapter_names if id(module) in encoder_modules else names_by_beam
                hook = partial(_add_adapter_names, container, adapter_names, names)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    def _modules_of_encoder(self) -> set[int]:
        """The ids of the modules of the encoder; empty if the model has none, or is one itself."""
        get_encoder = getattr(self.model, "get_encoder", None)
        encoder = None if get_encoder is None else get_encoder()
        if encoder is None or encoder is self.model:
            return set()
        return {id(module) for module in encoder.modules()}

    # ---- files -----------------------------------------------------------------------------------------------------
    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: TensorNetworkConfig,
        adapter_name: str,
        state_dict: Mapping[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """The tensors of an adapter's file. PEFT writes the configuration next, so its values are set here."""
        adapter = required_container(model).adapters_by_name()[adapter_name]
        adapter.check_started()
        config.set_saved_values(saved_values(adapter))
        prefix = _key_prefix(adapter_name)
        # `in` and not `startswith`: before the prefix stand the names of the wrappers around the model.
        return {key: value for key, value in state_dict.items() if prefix in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(_key_prefix(adapter_name), f"{CONTAINER_NAME}.metalora_adapters.")


def _key_prefix(adapter_name: str) -> str:
    return f"{CONTAINER_NAME}.metalora_adapters.{adapter_name}."


def _add_adapter_names(
    container: AdapterContainer,
    names_of_call: Sequence[str],
    names_of_rows: Sequence[str],
    module: nn.Module,
    args: Any,
    kwargs: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Forward pre-hook that adds an argument, if the forward is one of the call that has added the hook."""
    if container.call.adapter_names is not names_of_call:  # another thread's
        return args, kwargs
    return args, {**kwargs, "adapter_names": names_of_rows}
