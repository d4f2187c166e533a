"""A trained LoRA on a model: the updates of its modules, and what a DoRA or another start adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from metalora._util.shown import shown
from metalora.adapters.held_matrix import held_matrix
from metalora.fitting.updates import LowRankUpdate
from metalora.io.base_samples import plain_module
from metalora.io.lora.lycoris import magnitude_of
from metalora.io.lora.matrix_updates import updates_of_matrices
from metalora.io.lora.module_update import module_update
from metalora.io.lora.peft_config import Start
from metalora.io.lora.placement import place
from metalora.io.lora.source import read_source


@dataclass(frozen=True)
class TrainedLora:
    """A trained LoRA by the module paths of a model.

    Attributes:
        updates: Path -> up · down, with the scale in `up`.
        magnitudes: Path -> the norms (out,) of the rows of W + up · down, of a DoRA; otherwise empty.
        start: "pissa" or "olora" if Delta W is up · down less a part of W that these decompositions find.
        scales: Path -> the scale that `up` includes, if a configuration says it.
        file: What it was read from, for error messages.
        whole: Name of a tensor in the trained model -> its value, for modules that were trained whole.
    """

    updates: dict[str, LowRankUpdate]
    magnitudes: dict[str, Tensor]
    start: Start
    scales: dict[str, float]
    file: Path
    whole: dict[str, Tensor]

    def check_is_update(self) -> None:
        """Raise a ValueError unless Delta W is up · down at every module."""
        if self.magnitudes:
            raise ValueError(
                f"{self.file}: a DoRA, which also rescales the columns of the weight: metalora.load_lora reads it as "
                "an adapter, but it is no low-rank update"
            )
        if self.start:
            raise ValueError(
                f"{self.file}: init_lora_weights={self.start!r} changed the base's weights: metalora.load_lora reads "
                "it as an adapter, but it is no low-rank update of this base"
            )


def read_trained(model: nn.Module, path: str | Path, network: str | None = None, subfolder: str = "") -> TrainedLora:
    """Read a trained LoRA by the module paths of its base; see `metalora.load_lora`."""
    source = read_source(path, subfolder)
    of_matrices = {} if network else updates_of_matrices(source, model)
    groups = {name: group for name, group in source.groups.items() if name not in of_matrices}
    modules = {name: plain_module(module) or module for name, module in model.named_modules()}
    place_of_error = source.file if source.flat else path
    paths = place(groups, model, place_of_error, network, source.flat)
    updates: dict[str, LowRankUpdate] = {}
    magnitudes, scales = {}, {}
    for of_name in of_matrices.values():
        updates |= of_name
    for name, module_path in paths.items():
        where, group = f"{source.file}: {shown(name)}", groups[name]
        update = module_update(group, modules[module_path], module_path, source.scales.get(name), where)
        updates[module_path] = update
        magnitude = _checked_magnitude(group, modules[module_path], len(update.up), where)
        if magnitude is not None:
            magnitudes[module_path] = magnitude
        if name in source.scales:
            scales[module_path] = source.scales[name].scale
    _check_all_or_none(updates, magnitudes, source.file)
    return TrainedLora(updates, magnitudes, source.start, scales, source.file, source.whole)


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
    paths = {name: name for name in updates if held_matrix(model, name) is not None}
    paths |= place([name for name in updates if name not in paths], model, source)
    return {path: updates[name] for name, path in paths.items()}


def _checked_magnitude(group: Mapping[str, Tensor], module: nn.Module, outputs: int, where: str) -> Tensor | None:
    try:
        magnitude = magnitude_of(group, outputs)
    except ValueError as error:
        raise ValueError(f"{where} {error}") from None
    if magnitude is not None and isinstance(module, nn.Embedding):
        raise ValueError(f"{where} is the DoRA of an embedding, which is not converted")
    return None if magnitude is None else magnitude.float()


def _check_all_or_none(updates: Mapping[str, LowRankUpdate], magnitudes: Mapping[str, Tensor], file: Path) -> None:
    """Raise a ValueError if some modules have magnitudes and others have none."""
    without = [path for path in updates if path not in magnitudes]
    if magnitudes and without:
        first = next(iter(magnitudes))
        raise ValueError(f"{file}: {first!r} has magnitudes (DoRA) and {without[0]!r} has none, which is not converted")
