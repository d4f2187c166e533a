"""The targets that a PEFT configuration means in a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import replace

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn

from metalora._util.patterns import MOST_PATTERNS, check_patterns
from metalora._util.suggest import nearest
from metalora.adapters.heads import output_heads
from metalora.adapters.held_matrix import MATRIX, MATRIX_TRANSPOSED, modules_along
from metalora.adapters.skipped import SkippedWeight, skipped_weights
from metalora.adapters.stored_weight import is_parametrized
from metalora.adapters.targets import (
    PRESETS,
    Refusal,
    Target,
    check_named_once,
    kind_of,
    reason_of_preset,
    refusal_of_matrix,
)
from metalora.adapters.usable_targets import method_refusals
from metalora.integrations.peft.compat import resolve_quantization_backend
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.saved_layout import check_same_targets
from metalora.io.lora.peft_patterns import AS_PEFT_MATCHES
from metalora.methods.registry import get_method
from metalora.methods.resolve import resolve

ALL_LINEAR = "all-linear"
NAMES_OR_PATTERN = ("target_modules", "exclude_modules", "target_parameters")
EXPRESSIONS = {
    "target_modules": "(?:{})$",
    "target_parameters": "(?:{})$",
    "exclude_modules": "(?:{})$",
    "layers_pattern": r"(?:^|.*?\.){}\.(?P<idx>\d+)\.",
    "modules_to_save": r"(^|.*\.){}($|\..*)",
    "rank_pattern": AS_PEFT_MATCHES,
    "alpha_pattern": AS_PEFT_MATCHES,
}
"""Field with patterns -> the expression into which PEFT puts each of them."""
NO_NUMBERED_LAYER: tuple[int, ...] = ()
"""The layer coordinate of targets that are in no numbered layer, such as a pooler; it sorts before all others."""


def resolve_targets(
    model: nn.Module, config: TensorNetworkConfig, matched: Mapping[str, Target | None]
) -> list[Target]:
    """Return the targets of a configuration.

    For a method with a layer mode, the targets outside of the numbered layers get a layer of their own.

    Args:
        model: The base model, with or without adapters of this tuner.
        config: The configuration.
        matched: Path -> target, for the modules that the configuration's patterns match; None for a module that is not
            a layer of a kind that can be adapted.

    Returns:
        The targets, in the order of `matched`.

    Raises:
        ValueError: A layer cannot be adapted, or the targets are not those that the adapter was saved with.
    """
    check_same_targets(model, config, matched)
    check_named_once(matched)
    targets = [_adaptable(model, path, target) for path, target in matched.items()]
    for path, reason in _refused_by_method(model, config, matched).items():
        raise ValueError(f"Target module {path!r} is not supported: {reason}")
    if "layer" not in get_method(config.method).coordinates:
        return targets
    # PEFT's patterns often match a pooler too, and PEFT's tuners adapt it; `attach` refuses it.
    return [replace(target, layer=NO_NUMBERED_LAYER) if target.layer is None else target for target in targets]


def _adaptable(model: nn.Module, path: str, target: Target | None) -> Target:
    """Return the target; ValueError if its layer cannot be adapted."""
    reason = _refusal(model, path)
    if target is None or reason is not None:
        is_held = target is not None and target.kind in (MATRIX, MATRIX_TRANSPOSED)
        held = f"; take target_parameters=[{f'{path}.weight'!r}]" if is_held else ""
        raise ValueError(f"Target module {path!r} is not supported: {reason}{held}")
    return target


def _refusal(model: nn.Module, path: str) -> Refusal | None:
    """Why a layer cannot be a target, whether or not there is an adapter around it."""
    modules = modules_along(model, path)
    if len(modules) <= path.count(".") + 1:  # not every word names a module
        return refusal_of_matrix(model, path)
    module = modules[-1]
    base = getattr(module, "base_layer", module)
    # A quantised weight is refused in general, but PEFT may have a backend that can read and write it.
    if resolve_quantization_backend(base) is not None:
        return None
    if is_parametrized(base):
        reason = "its weight is computed by a parametrization, into which PEFT does not merge; metalora.attach does"
        return Refusal(reason, reason)
    return reason_of_preset(model, path, base)


def _refused_by_method(model: nn.Module, config: TensorNetworkConfig, paths: Collection[str]) -> dict[str, Refusal]:
    """Why the method of a configuration cannot adapt layers that others can, for those that it cannot."""
    return method_refusals(model, resolve(config.adapter_config()), paths)


def targets_of_parameters(
    config: TensorNetworkConfig, matrices: Mapping[str, list[Target]], model_name: str
) -> dict[str, Target | None]:
    """Return path -> target of the matrices that `target_parameters` names, by whole paths or their ends.

    Args:
        config: The configuration; a loaded one has the targets with which it was saved.
        matrices: Path of a parameter -> its targets.
        model_name: The model, for messages.

    Raises:
        ValueError: A name matches no parameter.
    """
    matched: dict[str, Target | None] = {}
    for name in config.target_parameters or ():
        parameters = [parameter for parameter in matrices if f".{parameter}".endswith(f".{name}")]
        if not parameters:
            raise ValueError(f"target_parameters: {name!r} is no parameter of {model_name}{nearest(name, matrices)}")
        matched |= {target.path: target for parameter in parameters for target in matrices[parameter]}
    if config.placement is None:
        return matched
    return {path: target for path, target in matched.items() if path in config.placement["targets"]}


def check_patterns_of(model: nn.Module, config: TensorNetworkConfig) -> None:
    """Check that PEFT can match the regular expressions of a configuration against a model in a short time.

    Args:
        model: The base model.
        config: The configuration.

    Raises:
        ValueError: A pattern is not a regular expression or could take too long, or there are too many names.

    Example:
        >>> model = nn.ModuleDict({"attention_output_projection_of_layer": nn.Linear(2, 2)})
        >>> check_patterns_of(model, TensorNetworkConfig(target_modules="(([a-z_]+)+)+!"))
        Traceback (most recent call last):
        ValueError: target_modules: '(([a-z_]+)+)+!' could take too long to match
    """
    texts = [path for path, _ in model.named_modules()] + list(EMBEDDING_LAYER_NAMES)
    for name, expression in EXPRESSIONS.items():
        value = getattr(config, name) or ()
        if name in NAMES_OR_PATTERN and not isinstance(value, str):  # PEFT compares names as they are
            if len(value) > MOST_PATTERNS:
                raise ValueError(f"{name}: {len(value):,} names, expected at most {MOST_PATTERNS:,}")
            continue
        check_patterns([value] if isinstance(value, str) else value, texts, name, expression)


def is_all_linear(config: TensorNetworkConfig) -> bool:
    """Whether the configuration takes all linear layers by PEFT's word for them.

    Example:
        >>> is_all_linear(TensorNetworkConfig(target_modules="all-linear"))
        True
    """
    return isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR


def without_refused(
    model: nn.Module, config: TensorNetworkConfig, matched: Mapping[str, Target | None]
) -> dict[str, Target | None]:
    """Return the matched modules that can be adapted, for "all-linear", whose names the user did not choose.

    Args:
        model: The base model.
        config: The configuration.
        matched: Path -> target, as in `resolve_targets`.
    """
    usable = {path: target for path, target in matched.items() if _refusal(model, path) is None}
    refused = _refused_by_method(model, config, usable)
    return {path: target for path, target in usable.items() if path not in refused}


def skipped_by_all_linear(model: nn.Module, config: TensorNetworkConfig) -> tuple[SkippedWeight, ...]:
    """Return what "all-linear" leaves out, without what the configuration excludes.

    Args:
        model: The base model.
        config: The configuration, before PEFT replaces "all-linear" by names.
    """
    heads = output_heads(model)
    layers = {path: getattr(module, "base_layer", module) for path, module in model.named_modules()}
    linear = [
        path
        for path, layer in layers.items()
        if path not in heads
        and kind_of(layer) in PRESETS["linear"]
        and not path.endswith(".base_layer")
        and _refusal(model, path) is None
    ]
    by_method = (SkippedWeight(p, reason.reason) for p, reason in _refused_by_method(model, config, linear).items())
    skipped = (*skipped_weights(model, "linear"), *by_method)
    return tuple(weight for weight in skipped if not _is_excluded(config, weight.path))


def _is_excluded(config: TensorNetworkConfig, path: str) -> bool:
    """Whether the configuration excludes a path or a module above it."""
    words = path.split(".")
    names = [".".join(words[:depth]) for depth in range(1, len(words) + 1)]
    matching_all = copy(config)
    matching_all.target_modules = names
    return not all(check_target_module_exists(matching_all, name) for name in names)
