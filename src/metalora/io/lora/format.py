"""LoRA folders of PEFT without a model, and updates by the module paths of one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from metalora._util.shown import shown
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.lycoris import MAGNITUDE
from metalora.io.lora.placement import place
from metalora.io.lora.source import read_folder
from metalora.io.lora.trained_lora import TrainedLora, update_of_halves


def read_lora(folder: str | Path) -> dict[str, LowRankUpdate]:
    """Read a LoRA folder of PEFT: Delta W = up · down at every target.

    The scale alpha / r (rsLoRA: alpha / sqrt(r)) is multiplied into `up`; `rank_pattern` and `alpha_pattern` count.
    `fan_in_fan_out` does not: it tells how the base stores its weight.

    Args:
        folder: A folder that PEFT's `save_pretrained` wrote.

    Returns:
        Module path, as in the model that PEFT wrapped -> update, with down (rank, in), (rank, in, kw) or
        (rank, in, kh, kw) and up (out, rank).

    Raises:
        ValueError: A file is missing or damaged, or the adapter is no low-rank update: another peft_type, DoRA, trained
            biases, an initialisation that changed the base, or halves that do not fit.

    Warns:
        UserWarning: The folder also holds whole modules, such as a classifier; they are left out.

    Example:
        >>> import tempfile, torch
        >>> from metalora import AdapterConfig, attach
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = adapter.export_lora(folder)
        ...     update = read_lora(folder)["0"]
        >>> tuple(update.down.shape), tuple(update.up.shape)
        ((2, 8), (4, 2))
    """
    source = read_folder(Path(folder))
    updates = {
        name: update_of_halves(group, source.scales[name], f"{source.file}: {shown(name)}")
        for name, group in source.groups.items()
    }
    magnitudes = {name: group[MAGNITUDE] for name, group in source.groups.items() if MAGNITUDE in group}
    TrainedLora(updates, magnitudes, source.start, {}, source.file).check_is_update()
    return updates


def in_model(
    updates: Mapping[str, LowRankUpdate], model: nn.Module, source: str | Path = ""
) -> dict[str, LowRankUpdate]:
    """Return updates by the module paths of a model, which may contain the model of the updates or be a part of it.

    Args:
        updates: Module path -> update.
        model: The model to find the modules in.
        source: What the updates were read from, for error messages.

    Raises:
        ValueError: A module is not in the model, or several modules match; see `place`.

    Example:
        >>> import torch
        >>> update = LowRankUpdate(torch.ones(1, 2), torch.ones(3, 1))
        >>> model = nn.ModuleDict({"block": nn.ModuleDict({"fc": nn.Linear(2, 3)})})
        >>> list(in_model({"wrapped.block.fc": update}, model))
        ['block.fc']
    """
    return {path: updates[name] for name, path in place(updates, model, source).items()}
