"""The updates of matrices that a module reads itself, from a folder of PEFT; see `metalora.io.lora.parameters`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from metalora._util.shown import shown
from metalora.adapters.held_matrix import required_base
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.lycoris import MAGNITUDE
from metalora.io.lora.module_update import check_shape, update_of_halves
from metalora.io.lora.parameters import OF_OUT_PROJ, PeftPlace, places_in_folder, unstack_halves
from metalora.io.lora.peft_config import CONFIG, scales_of
from metalora.io.lora.source import LoraTensors


def updates_of_matrices(source: LoraTensors, model: nn.Module) -> dict[str, dict[str, LowRankUpdate]]:
    """Return the updates of a folder's `target_parameters`, and of the projections of nn.MultiheadAttention.

    Args:
        source: The LoRA. A single file has none of these.
        model: The base model.

    Returns:
        Name in the folder -> path of the target -> update. An `out_proj` whose update is zero has none.

    Raises:
        ValueError: The tensors do not fit together, or not to the matrices; or an update of `out_proj` is not zero.
    """
    if source.config.get("peft_type") != "LORA":
        return {}
    places = places_in_folder(model, _parameters(source), source.groups)
    places = {name: place for name, place in places.items() if name in source.groups}
    scales = scales_of(source.config, [place.key for place in places.values()], source.file.with_name(CONFIG))
    updates: dict[str, dict[str, LowRankUpdate]] = {}
    for name, place in places.items():
        where, group = f"{source.file}: {shown(name)}", source.groups[name]
        if MAGNITUDE in group:
            raise ValueError(f"{where} has a {MAGNITUDE}, which PEFT has for layers alone")
        updates[name] = {}
        for path, halves in _by_matrix(group, place).items():
            update = update_of_halves(halves, scales[place.key], where)
            check_shape(required_base(model, path), path, update, where)
            updates[name][path] = update
        if name.removesuffix(OF_OUT_PROJ) != name:
            updates[name] = _without_zero(updates[name], where)
    return updates


def _parameters(source: LoraTensors) -> list[str]:
    """Return the names of the parameters; ValueError if they are no list of names."""
    parameters = source.config.get("target_parameters") or []
    if not (isinstance(parameters, list) and all(isinstance(name, str) for name in parameters)):
        place = source.file.with_name(CONFIG)
        raise ValueError(f"{place}: target_parameters is {shown(parameters)}, expected a list of names")
    return parameters


def _by_matrix(group: Mapping[str, Tensor], place: PeftPlace) -> dict[str, Mapping[str, Tensor]]:
    """Return path of the target -> its halves, of one matrix or of all matrices of a stack."""
    if place.count is None:
        return {place.path: group}
    return {f"{place.path}.{index}": halves for index, halves in enumerate(unstack_halves(group, place.count))}


def _without_zero(updates: dict[str, LowRankUpdate], where: str) -> dict[str, LowRankUpdate]:
    """Return nothing if the update of an `out_proj` is zero, otherwise raise a ValueError.

    PEFT adds such an update twice in some versions, so that the file does not say what its author saw.
    """
    for path, update in updates.items():
        if update.up.any() and update.down.any():
            raise ValueError(
                f"{where}: {path!r} is the output of an nn.MultiheadAttention, whose update PEFT adds twice (0.21.2) "
                "or once, by its version: merge it with the PEFT that has trained it"
            )
    return {}
