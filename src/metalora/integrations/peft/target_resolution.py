"""The targets that a PEFT configuration means in a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import replace

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn

from metalora._util.patterns import MOST_PATTERNS, check_patterns
from metalora.adapters.skipped import SkippedWeight, skipped_weights
from metalora.adapters.stored_weight import is_parametrized
from metalora.adapters.targets import PRESETS, Refusal, Target, head_path, kind_of, refusal
from metalora.adapters.usable_targets import method_refusals
from metalora.integrations.peft.compat import resolve_quantization_backend
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.saved_layout import check_same_targets
from metalora.io.lora.format import AS_PEFT_MATCHES
from metalora.methods.registry import get_method
from metalora.methods.resolve import resolve

ALL_LINEAR = "all-linear"
NAMES_OR_PATTERN = ("target_modules", "exclude_modules")
EXPRESSIONS = {
    "target_modules": "(?:{})$",
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
        raise ValueError(f"Target module {path!r} is not supported: {reason}")
    return target


def _refusal(model: nn.Module, path: str) -> Refusal | None:
    """Why a layer cannot be a target, whether or not there is an adapter around it."""
    module = model.get_submodule(path)
    base = getattr(module, "base_layer", module)
    # A quantised weight is refused in general, but PEFT may have a backend that can read and write it.
    if resolve_quantization_backend(base) is not None:
        return None
    if is_parametrized(base):
        reason = "its weight is computed by a parametrization, into which PEFT does not merge; metalora.attach does"
        return Refusal(reason, reason)
    return refusal(model, path, base)


def _refused_by_method(model: nn.Module, config: TensorNetworkConfig, paths: Collection[str]) -> dict[str, Refusal]:
    """Why the method of a configuration cannot adapt layers that others can, for those that it cannot."""
    return method_refusals(model, resolve(config.adapter_config()), paths)


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
    head = head_path(model)
    layers = {path: getattr(module, "base_layer", module) for path, module in model.named_modules() if path != head}
    linear = [
        path
        for path, layer in layers.items()
        if kind_of(layer) in PRESETS["linear"] and not path.endswith(".base_layer") and _refusal(model, path) is None
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
