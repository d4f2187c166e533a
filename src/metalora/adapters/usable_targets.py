"""The targets of a configuration: those that its patterns name, and that its method can adapt in this model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from metalora.adapters.own_forward import Dependence, try_forward
from metalora.adapters.skipped import SkippedWeight, skipped_weights
from metalora.adapters.targets import PRESETS, Refusal, Target, find_targets, kind_of
from metalora.adapters.weight_readers import computed_with
from metalora.config import AdapterConfig
from metalora.methods.records import Biased, Magnitude
from metalora.methods.resolve import ResolvedMethod, resolve


def usable_targets(model: nn.Module, config: AdapterConfig) -> tuple[list[Target], tuple[SkippedWeight, ...]]:
    """Return the targets of a configuration, and what its preset leaves out.

    Args:
        model: The model, without an adapter.
        config: The configuration.

    Raises:
        ValueError: Nothing matches, or a layer that the user's patterns name cannot be adapted by this method.

    Example:
        >>> from timm.layers import StdConv2d
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), StdConv2d(4, 4, 3))
        >>> targets, skipped = usable_targets(model, AdapterConfig("ia3", targets="conv"))
        >>> [target.path for target in targets], [weight.path for weight in skipped]
        (['0'], ['1'])
    """
    targets = find_targets(model, config.targets, config.exclude)
    refused = method_refusals(model, resolve(config), (target.path for target in targets))
    if not refused:
        return targets, skipped_weights(model, config.targets, config.exclude)
    if not isinstance(config.targets, str) or config.targets not in PRESETS:
        path = next(iter(refused))
        raise ValueError(f"target {path!r}: {refused[path]}; leave it out, exclude=[{path!r}]")
    usable = [target for target in targets if target.path not in refused]
    if not usable:
        raise ValueError(f"targets {config.targets!r}: no layer is left, since {next(iter(refused.values()))}")
    left_out = (SkippedWeight(path, refusal.reason) for path, refusal in refused.items())
    return usable, (*skipped_weights(model, config.targets, config.exclude), *left_out)


def method_refusals(model: nn.Module, resolved: ResolvedMethod, paths: Iterable[str]) -> dict[str, Refusal]:
    """Return why layers that can be adapted in general cannot be by one method, for those that cannot.

    Args:
        model: The model, with or without adapters.
        resolved: The method with its configuration.
        paths: Paths of the layers.
    """
    read = computed_with(model)
    refused = {}
    for path in paths:
        module = model.get_submodule(path)
        base = getattr(module, "base_layer", module)  # in PEFT another adapter may be there already
        refusal = _why_not_read(resolved, base) if path in read else None
        refusal = refusal or _why_not_run(resolved, base)
        if refusal is not None:
            refused[path] = refusal
    return refused


def _why_not_read(resolved: ResolvedMethod, base: nn.Module) -> Refusal | None:
    """Why a method cannot adapt a layer with whose weight the model computes by itself."""
    name, has_bias = resolved.method.name, getattr(base, "bias", None) is not None
    if resolved.method.form == "bottleneck":
        reason = f"{name} is not a change of a weight"
    elif _differs_by_example(resolved):
        reason = "the adapter has another weight for each example"
    elif resolved.config.dropout:
        reason = "it would compute without the adapter's dropout"
    elif resolved.method.has(Biased) and not has_bias:
        reason = f"{name} adds a bias, which the model would not read"
    else:
        return None
    message = f"the model computes with the weight of this layer by itself, and {reason}"
    return Refusal(message, message)


def _why_not_run(resolved: ResolvedMethod, base: nn.Module) -> Refusal | None:
    """Why a method cannot adapt a layer whose class has a forward of its own."""
    trial = try_forward(base, str(kind_of(base)))
    needs_weight = resolved.method.form == "circuit" or resolved.method.has(Magnitude)
    runs_whole = trial.dependence is Dependence.GENERAL or (trial.dependence is Dependence.LINEAR and needs_weight)
    if not runs_whole:
        return None
    name = resolved.method.name
    if resolved.method.form == "feature_wise":
        reason = f"does not scale with its weight, as {name} needs it"
    elif resolved.method.form == "bottleneck" and not trial.returns_tensor:
        reason = f"returns more than one tensor, and {name} takes one"
    elif _differs_by_example(resolved) and not trial.returns_tensor:
        reason = "returns more than one tensor, which are not known to be those of the examples"
    elif resolved.config.dropout and resolved.method.form != "bottleneck":
        reason = "runs with W + ΔW as a whole, which leaves the adapter's dropout out"
    else:
        return None
    message = f"the forward of {type(base).__name__} {reason}"
    return Refusal(message, message)


def _differs_by_example(resolved: ResolvedMethod) -> bool:
    """Whether the examples of a batch have different weights; the condition of a support set is one for all."""
    return bool(resolved.per_example) and (resolved.tasks > 1 or resolved.config.condition.scope != "support")
