"""Another trained adapter in the place of an attached one: layers, hooks and parameters stay, their numbers change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from metalora._util.shown import shown
from metalora.adapters.adapter import Adapter
from metalora.adapters.layout import counted_stacks
from metalora.config import STACKS_WITHOUT_FIELD, AdapterConfig, config_in_file, from_dict
from metalora.fitting.updates import LowRankUpdate
from metalora.io.adapter_file import check_weights_of_base, is_adapter_file, read, restore
from metalora.io.lora.attaching import set_factors, set_magnitudes
from metalora.io.lora.trained_lora import TrainedLora, read_trained
from metalora.io.lora.whole_modules import WholeModules, values_of_whole_modules, write_values

FREE_FIELDS = ("targets", "exclude", "seed", "init", "dropout")  # what they lead to is compared, or changes no output
LORA_METHODS = ("lora", "rslora", "dora")


def swap(
    adapter: Adapter,
    path: str | Path,
    *,
    network: str | None = None,
    subfolder: str = "",
    whole_modules: WholeModules = "refuse",
    check_base: bool = True,
) -> None:
    """Replace the numbers of an attached adapter by those of another trained one of the same layout.

    Nothing is attached or detached, so that optimisers, compiled programs and hooks keep their parameters. No forward
    may run meanwhile.

    Args:
        adapter: An adapter that is not merged and not fixed to a condition.
        path: An adapter file of the same method, targets and ranks; or, for an adapter of method "lora", "rslora" or
            "dora", a LoRA that `metalora.load_lora` reads. Its ranks may be smaller, and its targets some of the
            adapter's; the others get a Delta W of zero.
        network: The network of a LoRA file to take.
        subfolder: The folder inside of `path` that holds the LoRA.
        whole_modules: What to do with modules that were trained whole beside a LoRA, as in `metalora.load_lora`.
        check_base: Whether to refuse an adapter file that was made on other weights of the base.

    Raises:
        ValueError: The file is not readable, or its adapter does not fit this one. The adapter is unchanged.

    Example:
        >>> import tempfile
        >>> from metalora import AdapterConfig, attach
        >>> adapter = attach(torch.nn.Sequential(torch.nn.Linear(8, 4)), AdapterConfig("lora", rank=2, targets=("0",)))
        >>> parameter = adapter.factors["0.B"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     adapter.save(f"{folder}/first")
        ...     _ = parameter.data.fill_(0.5)
        ...     swap(adapter, f"{folder}/first")
        >>> adapter.factors["0.B"] is parameter, parameter.abs().max().item()
        (True, 0.0)
    """
    if adapter.merged:
        raise ValueError("swap: the adapter is merged; unmerge it first")
    if adapter.fixed_condition is not None:
        raise ValueError("swap: the adapter is fixed to a condition of its own; call fix(None) first")
    if is_adapter_file(path):
        _swap_file(adapter, path, check_base)
    else:
        _swap_lora(adapter, read_trained(adapter.model, path, network, subfolder), whole_modules)
    adapter.accepted_origins.clear()  # condition files were compared with the old numbers
    adapter.sharing.swaps += 1  # conditions in memory belong to the old numbers


# ---- an adapter file ------------------------------------------------------------------------------------------------
def _swap_file(adapter: Adapter, path: str | Path, check_base: bool) -> None:
    description, tensors = read(path)
    stacks = len(counted_stacks(adapter.targets.values(), adapter.method))
    configs = [description["config"], config_in_file(adapter.config, stacks)]
    saved_config, own_config = (
        from_dict(AdapterConfig, {"stacks": STACKS_WITHOUT_FIELD, **values}, f"{path}: config") for values in configs
    )
    for field in fields(AdapterConfig):
        saved, here = getattr(saved_config, field.name), getattr(own_config, field.name)
        if field.name not in FREE_FIELDS and saved != here:
            raise ValueError(f"{path}: {field.name} is {shown(saved)}, that of the attached adapter is {shown(here)}")
    for target in sorted(description["targets"].keys() ^ adapter.targets.keys()):
        where = "the file" if target in description["targets"] else "the attached adapter"
        raise ValueError(f"{path}: target {shown(target)} is in {where} alone")
    if check_base:
        check_weights_of_base(adapter.model, description, path)
    given = adapter.given
    try:
        restore(adapter, description, tensors, path)
    except ValueError:
        adapter.given = given
        raise


# ---- a LoRA of another program --------------------------------------------------------------------------------------
def _swap_lora(adapter: Adapter, trained: TrainedLora, whole_modules: WholeModules) -> None:
    method = adapter.method.name
    if method not in LORA_METHODS:
        raise ValueError(f"{trained.file}: a LoRA, and the attached adapter is a {method}; expected {LORA_METHODS}")
    if trained.start or bool(trained.magnitudes) != (method == "dora"):
        kind = trained.start or ("dora" if trained.magnitudes else "lora")
        raise ValueError(f"{trained.file}: the LoRA is a {kind}, and the attached adapter is a {method}")
    for path in trained.updates:
        if path not in adapter.targets:
            raise ValueError(f"{trained.file}: {path!r} is no target of the attached adapter")
    if trained.magnitudes:
        for path in adapter.targets:
            if path not in trained.magnitudes:
                raise ValueError(f"{trained.file}: has no magnitude for {path!r}, a target of the attached adapter")
    updates = {path: _fitted(adapter, path, trained.updates, trained.file) for path in adapter.targets}
    values = values_of_whole_modules(adapter.model, trained.whole, trained.file, whole_modules)
    set_factors(adapter, updates)
    set_magnitudes(adapter, trained.magnitudes)
    write_values(values)


@torch.no_grad()
def _fitted(adapter: Adapter, path: str, updates: Mapping[str, LowRankUpdate], file: Path) -> LowRankUpdate:
    """Return the update of a target without the adapter's scale, and of the adapter's rank by zeros behind its own."""
    left: Tensor = adapter.factors[f"{path}.A"]  # (*kernel, in, rank)
    right: Tensor = adapter.factors[f"{path}.B"]  # (rank, out)
    down = left.new_zeros(left.movedim((-1, -2), (0, 1)).shape)
    up = right.new_zeros(right.mT.shape)
    if path in updates:
        rank = len(updates[path].down)
        if rank > len(down):
            raise ValueError(f"{file}: {path!r} has rank {rank}, above the {len(down)} of the attached adapter")
        down[:rank] = updates[path].down
        up[:, :rank] = updates[path].up / adapter.scale_of(path)
    return LowRankUpdate(down, up)
