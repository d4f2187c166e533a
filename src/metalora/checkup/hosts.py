"""The two ways to put an adapter into a model, `metalora.attach` and PEFT, behind one interface."""

from __future__ import annotations

import contextlib
import copy
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach
from metalora.adapters.conditioning.features import Inputs
from metalora.adapters.targets import find_targets
from metalora.config import AdapterConfig

if TYPE_CHECKING:
    from metalora.integrations.peft import TensorNetworkConfig


@dataclass(frozen=True)
class Attached:
    """A model with an adapter.

    Attributes:
        model: What is called.
        adapter: The adapter.
        layers: Path of a target -> the module that runs there.
        merge: Merge all targets.
        unmerge: Undo it.
        merge_alone: Merge the target of a path, and undo it.
    """

    model: nn.Module
    adapter: Adapter
    layers: Mapping[str, nn.Module]
    merge: Callable[[], None]
    unmerge: Callable[[], None]
    merge_alone: Callable[[str], None]


def attached(model: nn.Module, config: AdapterConfig | TensorNetworkConfig, example: Inputs | None) -> Attached:
    """Attach an adapter in the way that its configuration asks for.

    Args:
        model: The model; it is changed.
        config: An `AdapterConfig` for `metalora.attach`, or a configuration of `metalora.peft`.
        example: Inputs to learn the width of features from.

    Raises:
        ValueError: What `metalora.attach` or the tuner refuses.

    Example:
        >>> attached(nn.Sequential(nn.Linear(4, 4)), AdapterConfig("lora", 2, targets="0"), None).layers.keys()
        dict_keys(['0'])
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is skipped stands in the report
        return _native(model, config, example) if isinstance(config, AdapterConfig) else _in_peft(model, config)


def _native(model: nn.Module, config: AdapterConfig, example: Inputs | None) -> Attached:
    adapter = attach(model, config, example=example)

    def merge_alone(path: str) -> None:
        with only_layer(adapter, path):
            adapter.merge()
            adapter.unmerge()

    return Attached(model, adapter, adapter.layers, adapter.merge, adapter.unmerge, merge_alone)


def _in_peft(model: nn.Module, config: TensorNetworkConfig) -> Attached:
    from peft import get_peft_model

    from metalora.integrations.peft import adapter_of

    peft_model = get_peft_model(model, copy.deepcopy(config))  # it writes the names of modules into its configuration
    adapter = adapter_of(peft_model)
    layers = {path: model.get_submodule(path) for path in adapter.targets}

    def merge_alone(path: str) -> None:
        layers[path].merge(safe_merge=True)  # type: ignore[operator]
        layers[path].unmerge()  # type: ignore[operator]

    return Attached(
        peft_model,
        adapter,
        layers,
        lambda: peft_model.merge_adapter(safe_merge=True),
        lambda: peft_model.unmerge_adapter(),
        merge_alone,
    )


def config_in_peft(model: nn.Module, config: AdapterConfig) -> TensorNetworkConfig:
    """Return a configuration of `metalora.peft` that puts the same adapter at the same targets.

    Args:
        model: The model, in which presets and patterns are looked up.
        config: The configuration for `metalora.attach`.

    Raises:
        ValueError: The targets match nothing, or a field is set whose patterns PEFT reads in another way.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> config_in_peft(model, AdapterConfig("lora", targets="linear")).target_modules
        '(0)'
    """
    from metalora.integrations.peft import TensorNetworkConfig
    from metalora.integrations.peft.config import SHARED_FIELDS

    for name in ("rank_pattern", "alpha_pattern"):
        if getattr(config, name):
            raise ValueError(f"{name} has glob patterns here and regular expressions in PEFT: leave it out")
    paths = [re.escape(target.path) for target in find_targets(model, config.targets, config.exclude)]
    values = {name: copy.deepcopy(getattr(config, name)) for name in SHARED_FIELDS}
    for name in ("order", "generated", "frozen"):
        values[name] = list(values[name]) if isinstance(values[name], tuple) else values[name]
    rank = list(config.rank) if isinstance(config.rank, tuple) else config.rank
    return TensorNetworkConfig(
        r=rank,
        seed=config.seed,
        stacks=config.stacks,
        bias=config.bias,
        target_modules=f"({'|'.join(paths)})",
        **values,
    )


@contextlib.contextmanager
def only_layer(adapter: Adapter, path: str) -> Iterator[None]:
    """Let an adapter have the layer of one path alone, for verbs that go through all its layers.

    Example:
        >>> adapter = attach(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), AdapterConfig("lora", 2, targets="0,1"))
        >>> with only_layer(adapter, "1"):
        ...     [*adapter.layers]
        ['1']
        >>> [*adapter.layers]
        ['0', '1']
    """
    layers = adapter.layers
    adapter.layers = {path: layers[path]}
    try:
        yield
    finally:
        adapter.layers = layers
