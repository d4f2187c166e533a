"""What a file says of the base that its adapter was trained on, and the comparison with a base that is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.held_matrix import held_matrix, parameter_name, required_base
from metalora.adapters.layers import AdaptedLayer, MergeableLayer, OutputLayer
from metalora.io.fingerprint import base_weight, sampled_digest

PARTS = {
    "weights": "the base weights",
    "rest": "other parameters or buffers of the base (biases, layers without adapter)",
    "extractor": "the weights of the extractor",
}
"""What is sampled, by its name in files, and what messages call it."""
PEFT_WRAPS = ("base_layer", "original_module")
"""Where PEFT keeps an adapted layer, and a module that an adapter has a trained copy of (`modules_to_save`)."""


def plain_module(module: nn.Module) -> nn.Module | None:
    """Return the module of the plain base that a module of an adapted model stands for; None for an adapter.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> plain_module(linear) is linear
        True
    """
    if isinstance(module, Adapter):
        return None
    if isinstance(module, (AdaptedLayer, OutputLayer)):
        return module.base
    for wrapped in PEFT_WRAPS:
        if module._modules.get(wrapped) is not None:
            return module._modules[wrapped]
    return module


def base_tensors(module: nn.Module, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers on which the output of a base depends, by their names in the plain base.

    Buffers that a state dict leaves out follow from the configuration, and buffers of integers are counters and
    positions: neither is yielded.

    Args:
        module: The base, with or without an adapter.
        path: Where the module is in the model.

    Example:
        >>> [name for name, _ in base_tensors(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))]
        ['0.weight', '0.bias', '1.weight', '1.bias', '1.running_mean', '1.running_var']
    """
    plain = plain_module(module)
    if plain is None:
        return
    prefix = f"{path}." if path else ""
    for name, parameter in plain.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, buffer in plain.named_buffers(recurse=False):
        if buffer.is_floating_point() and name not in plain._non_persistent_buffers_set:
            yield prefix + name, buffer
    for name, child in plain.named_children():
        yield from base_tensors(child, prefix + name)


def trained_with(model: nn.Module, extra_module: nn.Module | None = None) -> list[str]:
    """Return the names of what is no part of the frozen base, since it was trained with the adapter: heads, mostly.

    Args:
        model: The model with the adapter.
        extra_module: A module that was trained too; it may be a part of the model.

    Returns:
        The names of the tensors that require a gradient, of those of `extra_module`, and of the modules of which an
        adapter of PEFT has a copy.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
        >>> trained_with(model, model[1])
        ['1.weight', '1.bias']
    """
    extra = [] if extra_module is None else [*extra_module.parameters(), *extra_module.buffers()]
    extra_ids = {id(tensor) for tensor in extra}
    names = [name for name, value in base_tensors(model) if value.requires_grad or id(value) in extra_ids]
    return names + [path for path, module in model.named_modules() if hasattr(module, "original_module")]


def sample_base(model: nn.Module, targets: Collection[str], left_out: Collection[str]) -> dict[str, Any]:
    """Return the digests of a base: of its adapted weights, and of everything else on which its output depends.

    Args:
        model: The base, with or without an adapter, merged or not: the digests are the same.
        targets: Paths of the adapted layers.
        left_out: Names of tensors or paths of modules that are no part of the frozen base, such as a trained head.

    Returns:
        "weights" and "rest": 32 hexadecimal digits, or None if a tensor is not here in full; "left_out".

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> before = sample_base(model, ["0"], [])
        >>> _ = nn.init.ones_(model[1].bias)
        >>> after = sample_base(model, ["0"], [])
        >>> after["weights"] == before["weights"], after["rest"] == before["rest"]
        (True, False)
    """
    weights = {f"{path}.weight": base_weight(required_base(model, path)) for path in targets}
    matrices = {path: held_matrix(model, path) for path in targets}
    # A merge changes the whole parameter, of which the weights are some matrices.
    parameters = {parameter_name(path, matrix) for path, matrix in matrices.items() if matrix is not None}
    skipped = set(left_out)
    before_merging = _before_merging(model)
    rest = [
        (name, before_merging.get(id(value), value))
        for name, value in base_tensors(model)
        if name not in weights and name not in parameters and skipped.isdisjoint(_with_parents(name))
    ]
    return {"weights": sampled_digest(weights.items()), "rest": sampled_digest(rest), "left_out": sorted(skipped)}


def check_samples(saved: Mapping[str, Any], here: Mapping[str, str | None], path: str | Path, remedy: str = "") -> None:
    """Raise a ValueError unless the digests of a base are those that a file holds.

    Args:
        saved: What the file says; a part that it does not say, as files of earlier versions, is not compared.
        here: Name of a part -> the digest of what is there; None if it cannot be computed, as that of sharded weights.
        path: The file, for the message.
        remedy: What the message ends with.

    Raises:
        ValueError: A digest differs.

    Example:
        >>> check_samples({"weights": "a"}, {"weights": "b"}, "adapter")
        Traceback (most recent call last):
        ValueError: adapter: the base weights are not those that the adapter was trained on (fingerprints differ)
    """
    for part, noun in PARTS.items():
        if None not in (here.get(part), saved.get(part)) and saved[part] != here[part]:
            raise ValueError(
                f"{path}: {noun} are not those that the adapter was trained on (fingerprints differ){remedy}"
            )


def _with_parents(name: str) -> list[str]:
    """Return "a.b.c", "a.b" and "a" of "a.b.c"."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def _before_merging(model: nn.Module) -> dict[int, Tensor]:
    """Return, by the id of a bias or a part of a weight that a merged adapter has changed, what it was before."""
    before: dict[int, Tensor] = {}
    for adapter in (module for module in model.modules() if isinstance(module, Adapter)):
        changed = [(getattr(layer.base, "bias", None), layer.original_bias) for layer in adapter.layers.values()]
        changed += [(outside.module.bias, outside.original) for outside in adapter.outside_biases.values()]
        for layer in adapter.layers.values():
            kept = layer.kept if isinstance(layer, MergeableLayer) else None
            changed += [] if kept is None else kept.pairs(layer.base)
        for tensor, original in changed:
            if original is not None:
                before.setdefault(id(tensor), original)
    return before
