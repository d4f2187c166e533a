"""The shapes of an adapter's tensors by its configuration alone, before anything of that size is allocated."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from metalora._util.shown import shown
from metalora.adapters.bound_target import LEARNED_MODULE, slot_of
from metalora.adapters.layout import build_layout
from metalora.adapters.targets import Target
from metalora.config import AdapterConfig
from metalora.methods.resolve import resolve

MOST_FROZEN = 2**26
"""Numbers of frozen factors, which no file has, that are made whatever the size of the base: 256 MB in float32."""


def expected_shapes(targets: Sequence[Target], config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what an adapter learns: of its factors, and of the two layers of its mapping net.

    Args:
        targets: The targets.
        config: The configuration.

    Returns:
        Name in the adapter's state dict -> shape. The first layer of the mapping net is left out if the configuration
        does not say the number of features.

    Raises:
        ValueError: The configuration does not fit the targets, or it asks for frozen factors, which are made from a
            seed, with more numbers than `MOST_FROZEN` and than the adapted weights.

    Example:
        >>> from torch import nn
        >>> from metalora.adapters.targets import find_targets
        >>> targets = find_targets(nn.Sequential(nn.Linear(8, 4)), "0")
        >>> expected_shapes(targets, AdapterConfig("lora", rank=2))
        {'owned.0/A': (8, 2), 'owned.0/B': (2, 4)}
        >>> expected_shapes(targets, AdapterConfig("vera", rank=10**9))
        Traceback (most recent call last):
        ValueError: frozen factors of 12000000000 numbers, the adapted weights have 32
    """
    resolved = resolve(config)
    layout = build_layout(targets, resolved)
    learned = {key: param.shape for key, param in layout.params.items() if not param.frozen}
    frozen = sum(prod(param.shape) for param in layout.params.values() if param.frozen)
    weights = sum(prod(target.sizes.values()) for target in targets)
    if frozen > max(MOST_FROZEN, weights):
        raise ValueError(f"frozen factors of {shown(frozen)} numbers, the adapted weights have {weights}")
    shapes = {f"{LEARNED_MODULE}.{slot_of(key)}": shape for key, shape in learned.items()}
    numels = [prod(shape) for shape in layout.shapes_of(resolved.generated).values()]
    if numels:
        condition = config.condition
        outputs = max(numels) if condition.heads == "shared" else sum(numels)
        shapes["conditioner.mapping_net.head.weight"] = (outputs, condition.hidden)
        if condition.feature_size is not None:
            shapes["conditioner.mapping_net.trunk.weight"] = (condition.hidden, condition.feature_size)
    return shapes
