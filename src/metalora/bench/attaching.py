"""The time until a model is adapted: attached, loaded from a file, and inside PEFT next to PEFT's own tuners."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft

import metalora.peft  # registers the tuner
from metalora.adapters.attach import attach
from metalora.adapters.targets import find_targets
from metalora.bench.cases import PEFT, Inputs, adapt_by_peft, adapter_config, build_model, check_names, rank_of
from metalora.bench.config import BenchConfig
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.config import AdapterConfig, to_dict
from metalora.io.adapter_file import load, save

IN_PEFT, LOADED = ", in peft", ", loaded"
AdaptModel = Callable[..., object]  # adapts a model, its only positional argument


def attaching(config: BenchConfig) -> list[Ratio]:
    """Time three ways to adapt a model for each method, next to PEFT's tuners; each time with a fresh model.

    Returns:
        The ratios to the first tuner of PEFT.

    Raises:
        ValueError: The configuration names no tuner of PEFT to compare with.
    """
    check_names(config)
    if not config.peers:
        raise ValueError("bench: attaching is compared with a tuner of PEFT; name one as a peer")
    base, inputs = build_model(config)
    names = _names_for_peft(base, config)
    cases: dict[str, AdaptModel] = {}
    for peer in config.peers:
        cases[PEFT + peer] = partial(adapt_by_peft, peer=peer, rank=rank_of(PEFT + peer, config), names=names)
    with tempfile.TemporaryDirectory() as folder:
        for method in config.methods:
            file = Path(folder) / f"{method}.safetensors"
            cases |= _three_ways(method, config, base, inputs, names, file)
        # A fresh copy each time, because a model can be adapted only once.
        times = interleaved(cases, config.rounds, fresh=lambda: copy.deepcopy(base))
    reference = PEFT + config.peers[0]
    return [ratio(times, name, reference) for name in cases]


def _names_for_peft(base: Any, config: BenchConfig) -> list[str]:
    """The targets as PEFT takes them: PEFT has neither presets nor globs."""
    if isinstance(config.targets, str) or any("*" in name for name in config.targets):
        return [target.path for target in find_targets(base, config.targets)]
    return list(config.targets)


def _three_ways(
    method: str, config: BenchConfig, base: Any, inputs: Inputs, names: list[str], file: Path
) -> dict[str, AdaptModel]:
    """Attach a method, load it from the file that is written here, and add it as a tuner of PEFT."""
    adapter, example = adapter_config(method, config), inputs.get("x", inputs)
    model = copy.deepcopy(base)
    attach(model, adapter, example=example)
    save(model, file)
    return {
        method: partial(attach, config=adapter, example=example),
        method + LOADED: partial(load, path=file),
        method + IN_PEFT: _in_peft(adapter, names),
    }


def _in_peft(adapter: AdapterConfig, names: list[str]) -> AdaptModel:
    def adapt(model: Any) -> object:
        config = metalora.peft.TensorNetworkConfig(
            method=adapter.method,
            clip_rank=adapter.clip_rank,
            tasks=adapter.tasks,
            r=adapter.rank,  # type: ignore[arg-type]  # a bench has one rank, not a tuple
            target_modules=names,
            condition=to_dict(adapter.condition),
        )
        return peft.get_peft_model(model, config)

    return adapt
