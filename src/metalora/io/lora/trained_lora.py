"""A trained LoRA on a model: the updates of its modules, and what a DoRA or another start adds to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from metalora._util.shown import cut, shown
from metalora.fitting.updates import LowRankUpdate
from metalora.io.base_samples import plain_module
from metalora.io.lora.lycoris import magnitude_of, update_of
from metalora.io.lora.peft_config import RankAndScale, Start
from metalora.io.lora.placement import place
from metalora.io.lora.source import read_source
from metalora.io.lora.tensor_names import DOWN, UP


@dataclass(frozen=True)
class TrainedLora:
    """A trained LoRA by the module paths of a model.

    Attributes:
        updates: Path -> up · down, with the scale in `up`.
        magnitudes: Path -> the norms (out,) of the rows of W + up · down, of a DoRA; otherwise empty.
        start: "pissa" or "olora" if Delta W is up · down less a part of W that these decompositions find.
        scales: Path -> the scale that `up` includes, if a configuration says it.
        file: What it was read from, for error messages.
    """

    updates: dict[str, LowRankUpdate]
    magnitudes: dict[str, Tensor]
    start: Start
    scales: dict[str, float]
    file: Path

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
    modules = {name: plain_module(module) or module for name, module in model.named_modules()}
    place_of_error = source.file if source.flat else path
    paths = place(source.groups, model, place_of_error, network, source.flat)
    updates, magnitudes, scales = {}, {}, {}
    for name, module_path in paths.items():
        where, group = f"{source.file}: {shown(name)}", source.groups[name]
        update = module_update(group, modules[module_path], module_path, source.scales.get(name), where)
        updates[module_path] = update
        magnitude = _checked_magnitude(group, modules[module_path], len(update.up), where)
        if magnitude is not None:
            magnitudes[module_path] = magnitude
        if name in source.scales:
            scales[module_path] = source.scales[name].scale
    _check_all_or_none(updates, magnitudes, source.file)
    return TrainedLora(updates, magnitudes, source.start, scales, source.file)


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


def module_update(
    group: Mapping[str, Tensor], module: nn.Module, module_path: str, scale: RankAndScale | None, where: str
) -> LowRankUpdate:
    """Return the update of a module.

    Args:
        group: Part -> tensor.
        module: The module.
        module_path: Its path.
        scale: Its rank and scale by a configuration; None: the part "alpha" says it.
        where: The file and the name of the module in it, for error messages.

    Raises:
        ValueError: The tensors do not fit together, or not to the module.
    """
    if scale is not None and group.keys() & {DOWN, UP}:
        update = update_of_halves(group, scale, where)
        check_shape(module, module_path, update, where)
        return update
    kernel = tuple(module.kernel_size) if isinstance(module, nn.Conv1d | nn.Conv2d) else ()
    group = {part: value.float() for part, value in group.items() if scale is None or part != "alpha"}
    _check_rank(group, scale, where)
    # First with the shapes alone: small factors may stand for a product that no memory holds.
    shapes = {part: value if part == "alpha" else value.to("meta") for part, value in group.items()}
    try:
        check_shape(module, module_path, update_of(shapes, kernel), where)
        update = update_of(group, kernel)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where} {error}") from None
    except (RuntimeError, IndexError, TypeError) as error:  # axes that torch cannot multiply
        raise ValueError(f"{where} has tensors that do not fit together ({cut(str(error))})") from None
    if scale is not None:
        update = LowRankUpdate(update.down, update.up * scale.scale)
    if not all(half.isfinite().all() for half in update):
        raise ValueError(f"{where} has a product, or a product with its scale, that is not finite")
    return update


def _check_rank(group: Mapping[str, Tensor], scale: RankAndScale | None, where: str) -> None:
    """Raise a ValueError if a factor of a LoHa or a LoKr has another rank than its configuration says."""
    for part in ("hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b"):
        if scale is not None and part in group and len(group[part]) != scale.rank:
            raise ValueError(f"{where} has {part} {tuple(group[part].shape)}, expected {scale.rank} rows")


def update_of_halves(group: Mapping[str, Tensor], scale: RankAndScale, where: str) -> LowRankUpdate:
    """Return the update of PEFT's lora_A and lora_B with its scale in `up`; ValueError if they do not fit together."""
    for part, other in ((DOWN, "lora_B"), (UP, "lora_A")):
        if part not in group:
            raise ValueError(f"{where} has {other} alone, expected A and B")
    down, up = group[DOWN], group[UP]  # (rank, in, *kernel) and (out, rank, 1..)
    is_pair = down.ndim in (2, 3, 4) and up.ndim == down.ndim and up.shape[1] == len(down)  # linear, conv1d, conv2d
    if not is_pair or 0 in (*down.shape, *up.shape) or up[0, 0].numel() != 1 or len(down) != scale.rank:
        raise ValueError(
            f"{where} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, expected ({scale.rank}, in) "
            f"and (out, {scale.rank}), or those of a convolution"
        )
    scaled = up.float().flatten(1) * scale.scale
    if not scaled.isfinite().all():
        raise ValueError(f"{where} has a lora_B whose product with its scale {scale.scale:g} is not finite")
    return LowRankUpdate(down.float(), scaled)


def check_shape(module: nn.Module, path: str, update: LowRankUpdate, source: str | Path) -> None:
    """Raise a ValueError for an update that has not the shape of a module's weight.

    Args:
        module: The module.
        path: Its path.
        update: The update; its tensors may be on the meta device.
        source: What the update was read from, for the message.

    Raises:
        ValueError: The shapes differ, or the module has no weight.
    """
    weight = getattr(module, "weight", None)
    stored = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    shape = (len(update.up), *update.down.shape[1:])
    # the linear layer of GPT-2 and an embedding store (in, out)
    is_transposed = type(module).__name__ == "Conv1D" or isinstance(module, nn.Embedding)
    if stored != (shape[::-1] if is_transposed else shape):
        raise ValueError(f"{source}: {path!r} has an update for a weight of {shape}, the model's is {stored}")


def check_shapes(model: nn.Module, updates: Mapping[str, LowRankUpdate], source: str | Path) -> None:
    """Raise a ValueError for an update that has not the shape of its module's weight."""
    for target, update in updates.items():
        check_shape(model.get_submodule(target), target, update, source)


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
