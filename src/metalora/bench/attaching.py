"""The time until a model is adapted: attached, loaded from a file, and inside PEFT beside PEFT's own tuners."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

import metalora.peft  # registers the tuner
from metalora.adapters.attach import attach
from metalora.adapters.targets import find_targets
from metalora.bench.config import BenchConfig
from metalora.bench.steps import PEERS, PEFT, adapter_config, build, check
from metalora.bench.timing import Ratio, ratio
from metalora.config import to_dict
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
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, Callable] = {PEFT + peer: _peer(peer, config, names) for peer in config.peers}
        for method in config.methods:
            own, file, model = (
                adapter_config(method, config),
                Path(folder) / f"{method}.safetensors",
                copy.deepcopy(base),
            )
            attach(model, own, example=inputs)
            save(model, file)
            cases[method] = lambda model, own=own: attach(model, own, example=inputs)
            cases[method + LOAD] = lambda model, file=file: load(model, file)
            cases[method + IN_PEFT] = _in_peft(method, config, names)
        times = _seconds(cases, base, config.rounds)
    reference = PEFT + config.peers[0]
    return [ratio(times, name, reference) for name in cases]


def _seconds(cases: dict[str, Callable], base: nn.Module, rounds: int, warm: int = 1) -> dict[str, list[float]]:
    """As `interleaved`, without the time that a fresh copy of the model takes."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for k in range(warm + rounds):
        for name, adapt in cases.items():
            model = copy.deepcopy(base)
            start = time.perf_counter()
            adapt(model)
            if k >= warm:
                found[name].append(time.perf_counter() - start)
    return found


def _peer(peer: str, config: BenchConfig, names: list[str]) -> Callable:
    import peft

    return lambda model: peft.get_peft_model(model, getattr(peft, PEERS[peer])(r=config.rank, target_modules=names))


def _in_peft(method: str, config: BenchConfig, names: list[str]) -> Callable:
    import peft

    adapter = adapter_config(method, config)
    own = dict(method=method, r=config.rank, clip_rank=True, tasks=adapter.tasks, condition=to_dict(adapter.condition))
    return lambda model: peft.get_peft_model(model, metalora.peft.TensorNetworkConfig(target_modules=names, **own))
