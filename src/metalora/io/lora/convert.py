"""Conversion: trained LoRAs of one base as one adapter of a shared method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.adapters.attach import attach
from metalora.config import AdapterConfig
from metalora.fitting.fit_updates import FitReport, fit_updates
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.import_ import read_any_lora
from metalora.io.lora.trained_lora import in_model
from metalora.methods.resolve import resolve


@dataclass(frozen=True)
class Conversion:
    """What a conversion achieved.

    Attributes:
        fit: The errors of the fit.
        params_before: Number of parameters of all LoRAs.
        params_after: Number of parameters of the adapter.
    """

    fit: FitReport
    params_before: int
    params_after: int

    @property
    def error(self) -> float:
        """Return |T - T'|_F / |T|_F, with T the Delta W of all targets and LoRAs and T' those of the adapter."""
        return self.fit.error


def convert(
    model: nn.Module, loras: Sequence[str | Path | Mapping[str, LowRankUpdate]], config: AdapterConfig
) -> tuple[Adapter, Conversion]:
    """Attach an adapter whose factors are fitted to trained LoRAs.

    It minimises sum_{t,l,p} |s B_t A_t - Delta W_{t,l,p}|_F^2 over the factors, by TT-SVD, by HOSVD and HOOI, or by
    ALS; the topology of the method's network decides which. No dense Delta W is formed.

    Args:
        model: The base model of the LoRAs, without an adapter.
        loras: Folders or files of trained LoRAs (see `load_lora`), or mappings of module path -> update. Several LoRAs
            become the tasks 0, 1, ... of a method with a task mode.
        config: The configuration of the adapter. Its targets are replaced by the modules that the LoRAs adapt, its
            number of tasks by the number of LoRAs.

    Returns:
        The adapter, and a report with the error and the numbers of parameters.

    Raises:
        ValueError: No LoRA is given or one is not readable, the model lacks a module, shapes do not fit, the method has
            no task mode for several LoRAs, or its network is neither a chain nor a tree nor CP. The model is unchanged.

    Example:
        >>> import torch
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
        >>> lora = {name: LowRankUpdate(torch.randn(2, 8), torch.randn(8, 2)) for name in model}
        >>> adapter, report = convert(model, [lora], AdapterConfig("lora", rank=2))
        >>> report.error < 1e-5, report.params_before, report.params_after
        (True, 64, 64)
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
    updates = [_read(model, lora, f"LoRA {number}") for number, lora in enumerate(loras)]
    paths = tuple(dict.fromkeys(path for by_path in updates for path in by_path))  # of all LoRAs, each path once
    with unchanged_on_error(model):  # the shapes of the updates are known to fit only once there is a layout
        adapter = attach(model, replace(config, targets=paths, exclude=(), tasks=len(loras)))
        report = fit_updates(adapter, updates)
    params_before = sum(_num_params(update) for by_path in updates for update in by_path.values())
    return adapter, Conversion(report, params_before, adapter.num_params())


def _read(model: nn.Module, lora: str | Path | Mapping[str, LowRankUpdate], name: str) -> dict[str, LowRankUpdate]:
    """Return a LoRA by the module paths of the model; `name` stands for it in errors if it is not a folder."""
    if isinstance(lora, Mapping):
        return in_model(lora, model, name)
    return read_any_lora(model, lora)


def _num_params(update: LowRankUpdate) -> int:
    return update.down.numel() + update.up.numel()
