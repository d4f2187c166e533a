"""The time until a model is adapted: attached, loaded from a file, and inside PEFT beside PEFT's own tuners."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import peft

import metalora.peft  # registers the tuner
from metalora.adapters.attach import attach
from metalora.adapters.targets import find_targets
from metalora.bench.config import BenchConfig
from metalora.bench.steps import PEFT, adapt_by_peft, adapter_config, build, check
from metalora.bench.timing import Ratio, interleaved, ratio
from metalora.config import AdapterConfig, to_dict
from metalora.io.adapter_file import load, save

IN_PEFT, LOAD = ", in peft", ", loaded"


def attaching(config: BenchConfig) -> list[Ratio]:
    """Every method three ways beside PEFT's tuners, as a ratio to the first of those; a fresh model for every time.

    ValueError: no tuner of PEFT to compare with.
    """
    check(config)
    if not config.peers:
        raise ValueError("bench: attaching is compared with a tuner of PEFT; name one as a peer")
    base, inputs = build(config)
    names = list(config.targets)
    if isinstance(config.targets, str) or any("*" in name for name in names):  # PEFT knows no presets and no globs
        names = [target.path for target in find_targets(base, config.targets)]
    example = inputs.get("x", inputs)
    cases: dict[str, Callable] = {PEFT + peer: _peer(peer, config, names) for peer in config.peers}
    with tempfile.TemporaryDirectory() as folder:
        for method in config.methods:
            own, file = adapter_config(method, config), Path(folder) / f"{method}.safetensors"
            model = copy.deepcopy(base)
            attach(model, own, example=example)
            save(model, file)
            cases[method] = partial(attach, config=own, example=example)
            cases[method + LOAD] = partial(load, path=file)
            cases[method + IN_PEFT] = _in_peft(own, names)
        times = interleaved(cases, config.rounds, fresh=lambda: copy.deepcopy(base))
    reference = PEFT + config.peers[0]
    return [ratio(times, name, reference) for name in cases]


def _peer(peer: str, config: BenchConfig, names: list[str]) -> Callable:
    return partial(adapt_by_peft, peer=peer, rank=config.rank, names=names)


def _in_peft(config: AdapterConfig, names: list[str]) -> Callable:
    same = {name: getattr(config, name) for name in ("method", "clip_rank", "tasks")}
    condition = to_dict(config.condition)
    return lambda model: peft.get_peft_model(
        model,
        metalora.peft.TensorNetworkConfig(r=config.rank, target_modules=names, condition=condition, **same),
    )
