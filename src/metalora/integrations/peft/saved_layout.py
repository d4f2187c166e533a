"""The layout of an adapter in its saved configuration: which targets it has, and on which base.

PEFT finds the targets of a loaded adapter again by the patterns of its configuration. In another model these would be
other targets, with other indices into the shared factors; the saved layout, field `placement`, is there to refuse that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from metalora._util.shown import shown
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.expected_shapes import expected_shapes
from metalora.adapters.layout import counted_stacks
from metalora.adapters.targets import Target
from metalora.config import AdapterConfig, config_in_file
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.integrations.peft.container import layers_of, weight_of
from metalora.io.base_samples import sample_base, trained_with
from metalora.io.condition_file import adapter_digest
from metalora.io.fingerprint import fingerprint, frozen_digest, is_here
from metalora.methods.resolve import resolve

MAXIMUM_HINT_LENGTH = 300
"""Characters of the list of a model's modules in an error message."""


def check_same_targets(model: nn.Module, config: TensorNetworkConfig, matched: Mapping[str, Target | None]) -> None:
    """Check that a loaded adapter meets the targets and the network with which it was saved; a new one passes.

    Args:
        model: The base model.
        config: The configuration of the adapter.
        matched: Path -> target (None for a module that cannot be adapted), for the modules that its patterns match.

    Raises:
        ValueError: The method has another network, a target is missing, or a target has other sizes.
    """
    if config.placement is None:
        return
    factors = dict(resolve(config.adapter_config()).method.factors)
    if config.placement["factors"] != factors:
        raise ValueError(f"the adapter's {config.method} is wired {config.placement['factors']}, here it is {factors}")
    for path, sizes in config.placement["targets"].items():
        if path not in matched:
            hint = nearest(path, [module_path for module_path, _ in model.named_modules()])
            raise ValueError(
                f"the adapter was made for a {config.placement['base']['class']} with a layer {path!r}, which this "
                f"{type(model).__name__} does not have{hint[:MAXIMUM_HINT_LENGTH]}"
            )
        target = matched[path]
        if target is None or target.sizes != sizes:
            sizes_here = "a module that cannot be adapted" if target is None else target.sizes
            raise ValueError(f"the adapter was made for a layer {path!r} of sizes {sizes}, here it is {sizes_here}")


def check_saved_shapes(config: TensorNetworkConfig, resolved: AdapterConfig, targets: Sequence[Target]) -> None:
    """Check, before anything is allocated, that a loaded adapter's configuration makes tensors of the saved shapes.

    Args:
        config: The configuration of the adapter.
        resolved: The library's own configuration of it.
        targets: Its targets.

    Raises:
        ValueError: A tensor has another shape, or frozen factors, which are not saved, are larger than the base.
    """
    if config.placement is None:
        return
    saved = {name: tuple(shape) for name, shape in config.placement["tensors"].items()}
    shapes = expected_shapes(targets, resolved)
    for name, shape in shapes.items():
        if saved.get(name) != shape:
            raise ValueError(f"tensor {shown(name)} has shape {saved.get(name)}, by the configuration it is {shape}")


def check_frozen_factors(config: TensorNetworkConfig, adapter: Adapter) -> None:
    """Check that the frozen factors of a loaded adapter, which are made from its seed, are those it was trained with.

    Args:
        config: The configuration, with the digest of the frozen factors if the adapter was saved.
        adapter: The adapter with the factors that this version of torch makes.

    Raises:
        ValueError: The factors differ.
    """
    saved_digest = None if config.placement is None else config.placement["frozen"]
    if saved_digest is not None and saved_digest != frozen_digest(adapter):
        raise ValueError(
            f"the adapter's frozen factors, made from seed {adapter.config.seed}, come out differently here: use the "
            "version of torch with which it was trained"
        )


def saved_values(adapter: Adapter) -> dict[str, Any]:
    """Return what adapter_config.json needs to know about an adapter.

    Args:
        adapter: The adapter that is being saved.

    Returns:
        Field of `TensorNetworkConfig` -> value: the fields that were resolved or changed since the adapter was made,
        and its layout as `placement`.
    """
    rank = adapter.config.rank
    values = config_in_file(adapter.config, len(counted_stacks(adapter.targets.values(), adapter.method)))
    return {  # JSON has neither tuples nor mappings of other kinds
        "r": dict(rank) if isinstance(rank, Mapping) else list(rank) if isinstance(rank, tuple) else rank,
        "tasks": adapter.config.tasks,
        "seed": adapter.config.seed,
        "stacks": values.get("stacks"),
        "condition": {
            name: list(value) if isinstance(value, tuple) else value for name, value in values["condition"].items()
        },
        "placement": {
            "targets": {path: dict(target.sizes) for path, target in adapter.targets.items()},
            "coords": {path: target_layout.coords for path, target_layout in adapter.layout.targets.items()},
            "factors": dict(adapter.method.factors),
            "tensors": {name: list(value.shape) for name, value in adapter.state_dict().items()},
            "frozen": _frozen_digest_if_exact(adapter),
            "base": {
                "class": type(adapter.model).__name__,
                "fingerprint": _fingerprint_if_available(adapter),  # what earlier versions compare
                **sample_base(adapter.model, adapter.targets, trained_with(adapter.model)),
            },
            "digest": adapter_digest(adapter),  # condition files have it
        },
    }


def _frozen_digest_if_exact(adapter: Adapter) -> str | None:
    """The digest of the frozen factors; None if they were rounded to 16 bits together with the learned ones."""
    # Rounded numbers have another digest than those that the seed makes when the adapter is loaded.
    if all(value.dtype in (torch.float32, torch.float64) for value in adapter.factors.values()):
        return frozen_digest(adapter)
    return None


def _fingerprint_if_available(adapter: Adapter) -> str | None:
    """The fingerprint of the base's weights; None if a weight is not here in full: on the meta device, or sharded."""
    if not all(is_here(weight_of(layer.base)) for layer in layers_of(adapter).values()):
        return None
    return fingerprint(adapter.model, list(adapter.targets))
