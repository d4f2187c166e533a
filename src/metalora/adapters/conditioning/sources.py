"""Where the features of a condition come from: the hooks of a source, and the mapping net that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from metalora._util.shown import cut
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.active import after_stem
from metalora.adapters.conditioning.extractor import image_conversion, load_extractor
from metalora.adapters.conditioning.features import Inputs, example_input, watch_head, watch_stages
from metalora.adapters.conditioning.mapping_net import Conditioner
from metalora.adapters.conditioning.prompt import is_causal
from metalora.adapters.conditioning.stages import encoder_path, modules_of_answer, stages
from metalora.adapters.heads import head_path
from metalora.config import ConditionConfig


def prepare_condition(adapter: Adapter, model: nn.Module, example: Inputs | None, extractor: nn.Module | None) -> None:
    """Give an adapter the hooks of its feature source and its mapping net; do nothing if no factor is generated.

    Args:
        adapter: The adapter; its `hooks`, `conditioner` and, if the number of features is measured, its configuration
            are set.
        model: The model that the adapter is for.
        example: Inputs to measure the number of features on; None: they are guessed.
        extractor: The network of source "extractor"; None: the one that the configuration names.

    Raises:
        ValueError: The configuration of the condition is not complete, or it does not fit the model.

    Example:
        `attach` calls this function for every adapter.

        >>> import metalora
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> config = metalora.AdapterConfig("metalora-cp", rank=2, targets="0")
        >>> metalora.attach(model, config).conditioner.feature_size
        18
    """
    config, condition = adapter.config, adapter.config.condition
    shapes = adapter.layout.shapes_of(adapter.resolved.generated)
    if not shapes:
        return
    if condition.scope == "sample" and condition.source != "tensor" and condition.tokens == "prompt":
        adapter.reads_prompt = is_causal(model)
    _check_extractor_settings(condition, extractor)
    size = condition.feature_size
    if condition.source == "tensor":
        if size is None:
            raise ValueError("condition source 'tensor' needs condition.feature_size, the width of the tensor")
    else:
        network = _watch(adapter, model, extractor)
        if size is None:
            size = adapter.features(example).shape[1] if example is not None else _size_of_guess(adapter, network)
            config = replace(config, condition=replace(condition, feature_size=size))
            adapter.resolved = replace(adapter.resolved, config=config)
    # Features must not change a factor that alone keeps Delta W at zero in the beginning.
    silent = [key for key in shapes if adapter.resolved.hides_features(adapter.layout.params[key].factor)]
    adapter.conditioner = Conditioner(condition, size, shapes, config.seed, silent)


def _size_of_guess(adapter: Adapter, network: nn.Module) -> int:
    """Return the width of the features of a guessed input; ValueError if the network does not take it."""
    guess = example_input(network)
    try:
        return adapter.features(guess).shape[1]
    except (AttributeError, TypeError, IndexError, KeyError, RuntimeError) as error:
        shape = f"a tensor {tuple(guess.shape)}" if isinstance(guess, torch.Tensor) else "its dummy inputs"
        raise ValueError(
            f"{type(network).__name__} does not run on {shape}, which was guessed to measure its features "
            f"({type(error).__name__}: {cut(str(error))}); pass attach(..., example=inputs)"
        ) from error


def _watch(adapter: Adapter, model: nn.Module, extractor: nn.Module | None) -> nn.Module:
    """Add the hooks of the feature source to its network, and return this network."""
    condition, network = adapter.config.condition, model
    if condition.source == "extractor":
        network = extractor if extractor is not None else load_extractor(condition.extractor)
        network.requires_grad_(False).eval()
        adapter.extractor = (network,)
        adapter.extractor_images = image_conversion(model, network, condition)
    if condition.source == "stem":
        if condition.scope != "sample":
            raise ValueError("condition source 'stem' is read in the same forward pass, so its scope must be 'sample'")
        if condition.stem is None:
            raise ValueError("condition source 'stem' needs condition.stem, the path of the module that is read")
        paths = [condition.stem]
    # An extractor gives its pooled last layer, unless stages are named.
    elif condition.source == "pooled" or (condition.source == "extractor" and not condition.stages):
        head = head_path(network)
        # Without a head the output of the network is read; that of an encoder-decoder is the answer.
        _check_no_answer(condition, network, sorted(modules_of_answer(network)) if head is None else [head])
        adapter.hooks += watch_head(network, adapter.recorder)
        return network
    else:
        paths = list(condition.stages) or stages(network)
    modules = dict(network.named_modules())
    for path in paths:
        if path not in modules:
            raise ValueError(f"condition: {type(network).__name__} has no module {path!r}{nearest(path, modules)}")
    _check_no_answer(condition, network, paths)
    adapter.hooks += watch_stages(network, paths, adapter.recorder)
    if condition.source == "stem":
        adapter.hooks.append(network.get_submodule(paths[0]).register_forward_hook(partial(after_stem, adapter)))
    return network


def _check_no_answer(condition: ConditionConfig, network: nn.Module, paths: Sequence[str]) -> None:
    """Raise a ValueError if a condition per example is to be read where an encoder-decoder writes its answer."""
    if condition.tokens == "all" or condition.scope != "sample":
        return
    answer = modules_of_answer(network)
    inside = [path for path in paths if path in answer]
    if inside:
        raise ValueError(
            f"condition: {inside[0]!r} of {type(network).__name__} reads the answer, which a condition would give away "
            f"in training: read modules of {encoder_path(network)!r} alone (source 'stages' does)"
        )


def _check_extractor_settings(condition: ConditionConfig, extractor: nn.Module | None) -> None:
    """Raise a ValueError for a setting of an extractor that another source would ignore."""
    if condition.source == "extractor":
        return
    names = ("extractor", "image_mean", "image_std", "image_size")
    settings = [f"condition.{name}" for name in names if getattr(condition, name) is not None]
    settings += ["attach(extractor=...)"] if extractor is not None else []
    if settings:
        raise ValueError(f"{settings[0]} is for condition source 'extractor', and the source is {condition.source!r}")
