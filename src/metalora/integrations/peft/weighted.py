"""Several adapters of one model combined into a new adapter, a plain LoRA, as PEFT's `add_weighted_adapter` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.fitting.combination import CombinationRule, How, Sign
from metalora.fitting.updates import LowRankUpdate
from metalora.integrations.peft.config import TensorNetworkConfig
from metalora.io.lora.snapshot import low_rank_updates

HOWS: dict[str, How] = {
    "cat": "sum",
    "svd": "sum",
    "ties_svd": "ties",
    "dare_linear_svd": "dare_linear",
    "dare_ties_svd": "dare_ties",
    "magnitude_prune_svd": "magnitude_prune",
}
"""PEFT's types that combine Delta W -> the rule of this library."""
TYPES_OF_FACTORS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
"""PEFT's types that combine the factors A and B one by one; other methods have no A and B to combine."""
FIELDS_OF_THE_FIRST = ("task_type", "base_model_name_or_path", "revision", "inference_mode")


def parse_type(name: str, density: float | None, sign: Sign) -> CombinationRule:
    """Return the rule that a `combination_type` of PEFT stands for.

    Args:
        name: PEFT's `combination_type`.
        density: PEFT's `density`.
        sign: PEFT's `majority_sign_method`.

    Raises:
        ValueError: A type that is unknown or works on A and B, or a density that is missing or means nothing.

    Example:
        >>> parse_type("ties_svd", density=0.5, sign="total").how
        'ties'
    """
    if name in TYPES_OF_FACTORS:
        other = "'cat' (exact) or 'svd'" if name == "linear" else repr(f"{name}_svd")
        raise ValueError(
            f"add_weighted_adapter: combination_type={name!r} combines the factors A and B of LoRAs, which is no "
            f"combination of Delta W; choose {other}"
        )
    if name not in HOWS:
        raise ValueError(f"add_weighted_adapter: combination_type={name!r}{nearest(name, HOWS)}")
    seed = int(torch.randint(2**31, ())) if name.startswith("dare") else 0  # as PEFT, from torch's own generator
    return CombinationRule(HOWS[name], density, sign, seed)


def updates_by_name(
    names: Sequence[str], adapters: Mapping[str, Adapter], configs: Mapping[str, TensorNetworkConfig]
) -> list[dict[str, LowRankUpdate]]:
    """Return the updates of adapters by name.

    Raises:
        ValueError: An unknown name, whole modules that were trained, or an adapter that is more than one Delta W.
    """
    updates = []
    for name in names:
        if name not in adapters:
            raise ValueError(f"add_weighted_adapter: adapter {name!r}{nearest(name, adapters)}")
        if configs[name].modules_to_save:
            raise ValueError(
                f"add_weighted_adapter: adapter {name!r} has modules_to_save, whole modules that are not combined; "
                "metalora.combine combines the Delta W alone"
            )
        try:
            updates.append(low_rank_updates(adapters[name]))
        except ValueError as error:
            raise ValueError(f"add_weighted_adapter: adapter {name!r}: {error}") from None
    return updates


def lora_config(
    updates: Mapping[str, LowRankUpdate], first: TensorNetworkConfig, parameters: Mapping[str, str]
) -> TensorNetworkConfig:
    """Return the configuration of a LoRA that can hold updates.

    Args:
        updates: Module path -> update.
        first: The configuration of the first adapter, whose task type and base the new one has.
        parameters: Path of a matrix that a module reads itself -> path of its parameter.
    """
    ranks = {path: len(update.down) for path, update in updates.items()}
    largest = max(ranks.values())
    modules = [path for path in updates if path not in parameters]
    shared: dict[str, Any] = {name: getattr(first, name) for name in FIELDS_OF_THE_FIRST}
    return TensorNetworkConfig(
        method="lora",
        r=largest,
        rank_pattern={f"^{re.escape(path)}$": rank for path, rank in ranks.items() if rank != largest},
        target_modules="|".join(map(re.escape, modules)) or [],  # a list would match other paths that end alike
        target_parameters=list(dict.fromkeys(parameters[path] for path in updates if path in parameters)) or None,
        seed=0,
        **shared,
    )
