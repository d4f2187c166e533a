"""Conversion: a set of trained LoRAs of one base as one adapter of a shared method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import attach, detach
from metalora.config import AdapterConfig
from metalora.fitting.fit_updates import FitReport, fit_updates
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.format import in_model, read_lora
from metalora.methods.resolve import resolve


@dataclass(frozen=True)
class Conversion:
    """What a conversion made of the LoRAs: its errors, and the numbers before and after."""

    fit: FitReport
    params_before: int
    params_after: int

    @property
    def error(self) -> float:
        """|T - T'|_F / |T|_F over all targets and LoRAs."""
        return self.fit.error


def convert(
    model: nn.Module, loras: Sequence[str | Path | Mapping[str, LowRankUpdate]], config: AdapterConfig
) -> tuple[Adapter, Conversion]:
    """Attach an adapter whose factors are the nearest found to trained LoRAs, by TT-SVD, HOSVD and HOOI, or ALS.

    min sum_{t,l,p} |s B_t A_t - Delta W_{t,l,p}|_F^2, from the factors alone: no dense Delta W is formed.

    loras   folders of PEFT, or path -> LowRankUpdate; several are the tasks 0, 1, ... of a method with a task mode
    config  its targets are replaced by the modules that the LoRAs adapt
    ValueError: an unreadable LoRA, modules or shapes that the model has not, several LoRAs for a method without tasks,
    a method that is no chain, tree or CP; the model is as it was.
    """
    if not loras:
        raise ValueError("convert: no LoRA is given")
    method = resolve(config).method
    if len(loras) > 1 and "task" not in method.network.modes:
        raise ValueError(
            f"convert: {len(loras)} LoRAs, and method {method.name!r} has no task mode: convert one at a time, or "
            "choose a method that has (metatt-4+1d, metatt-6d)"
        )
    if config.tasks not in (1, len(loras)):
        raise ValueError(f"convert: tasks={config.tasks} for {len(loras)} LoRAs; leave it out")
    updates = [_read(model, lora, f"LoRA {k}") for k, lora in enumerate(loras)]
    paths = tuple(dict.fromkeys(path for pairs in updates for path in pairs))
    adapter = attach(model, replace(config, targets=paths, exclude=(), tasks=len(loras)))
    try:
        report = fit_updates(adapter, updates)
    except ValueError:
        detach(model)
        raise
    before = sum(half.numel() for pairs in updates for pair in pairs.values() for half in pair)
    return adapter, Conversion(report, before, adapter.num_params())


def _read(model: nn.Module, lora: str | Path | Mapping[str, LowRankUpdate], name: str) -> dict[str, LowRankUpdate]:
    if isinstance(lora, Mapping):
        return in_model(lora, model, name)
    return in_model(read_lora(lora), model, lora)
