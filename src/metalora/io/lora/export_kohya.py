"""An adapter as a file of kohya's scripts and LyCORIS, which programs for diffusion models read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from metalora._util.files import write_atomically
from metalora._util.suggest import nearest
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.exportable import exportable_layers
from metalora.io.lora.lycoris import locon_tensors, loha_tensors, lokr_tensors
from metalora.io.lora.snapshot import low_rank_updates
from metalora.tensornet.spec import KERNEL_MODES

LAYOUTS = {"loha": loha_tensors, "loha-tucker": loha_tensors, "lokr": lokr_tensors, "lokr-tucker": lokr_tensors,
           "lokr-full": lokr_tensors}  # fmt: skip
"""The methods that LyCORIS has a layout for; every other one becomes a LoCon."""
KINDS = ("linear", "conv1d", "conv2d", "grouped_conv1d", "grouped_conv2d", "conv3d")
PREFIXES = ("lora_unet", "lora_transformer", "lora_te", "lora_te1", "lora_te2", "lora_te3", "lycoris", "lora")
"""What may stand before the flattened path of a module."""


def flat_name(path: str, prefix: str) -> str:
    """Return the name of a module in a file.

    Example:
        >>> flat_name("mid_block.attentions.0", "lora_unet")
        'lora_unet_mid_block_attentions_0'
    """
    return f"{prefix}_{path.replace('.', '_')}"


def _path_of_other_programs(model: nn.Module, path: str, prefix: str) -> str:
    """Return a path as it was before transformers 5 took "text_model" out of the paths of CLIP's text encoder."""
    is_new = type(model).__name__ == "CLIPTextModel" and "text_model" not in dict(model.named_children())
    return f"text_model.{path}" if is_new and prefix.startswith("lora_te") else path


@dataclass(frozen=True)
class KohyaFile:
    """A file that was written.

    Attributes:
        path: Its path.
        algorithm: "locon", "loha" or "lokr".
        ranks: Rank of every target as the file says it (its alpha), by module path.
        bytes: Size of the file.
    """

    path: str
    algorithm: str
    ranks: dict[str, int]
    bytes: int


@torch.no_grad()
def export_kohya(
    adapter: Adapter,
    path: str | Path,
    condition: Condition | None = None,
    task: int | None = None,
    prefix: str = "lora_unet",
    dtype: torch.dtype | None = None,
) -> KohyaFile:
    """Write a file in the layout of kohya's scripts, exactly and without an SVD.

    LoHa and LoKr keep their own layouts (LyCORIS); every other method is written as lora_down and lora_up, of the rank
    of its low-rank form. The scale is multiplied into the tensors, and alpha is the rank.

    Args:
        adapter: An adapter that is not merged, on linear layers and convolutions.
        path: The file to create or to replace.
        condition: The condition of one example, for an adapter with generated factors.
        task: Number of the task, for an adapter with tasks.
        prefix: What stands before the flattened module paths: "lora_unet" for a UNet, "lora_transformer",
            "lora_te" for a text encoder ("lora_te1", "lora_te2", "lora_te3" if there are several), "lycoris" for
            LyCORIS's wrapper of any model.
        dtype: The dtype of the tensors in the file. None writes them as they are.

    Returns:
        What was written.

    Raises:
        ValueError: See `low_rank_updates`; a layer of another kind, or one that such programs compute differently; two
            paths with one flattened name; unequal ranks of LoHa; numbers that are not finite in `dtype`.

    Example:
        >>> import tempfile
        >>> from metalora import AdapterConfig, attach
        >>> model = torch.nn.ModuleDict({"mid": torch.nn.ModuleDict({"conv": torch.nn.Conv2d(6, 5, 3)})})
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets="mid.conv"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = export_kohya(adapter, f"{folder}/lora.safetensors")
        >>> written.algorithm, written.ranks
        ('locon', {'mid.conv': 2})
    """
    if prefix not in PREFIXES:
        raise ValueError(f"export: prefix {prefix!r}{nearest(prefix, PREFIXES)}")
    layers = exportable_layers(adapter, grouped=True)
    paths_by_name: dict[str, str] = {}
    for target in layers:
        if adapter.targets[target].kind not in KINDS:
            raise ValueError(f"export: target {target!r} is of kind {adapter.targets[target].kind}, expected {KINDS}")
        name = flat_name(_path_of_other_programs(adapter.model, target, prefix), prefix)
        if name in paths_by_name:
            raise ValueError(f"export: {target!r} and {paths_by_name[name]!r} have one name in the file, {name!r}")
        paths_by_name[name] = target
    updates = low_rank_updates(adapter, condition, task)
    tensors: dict[str, Tensor] = {}
    for name, target in paths_by_name.items():
        for suffix, value in _tensors_of(adapter, target, updates[target]).items():
            value = value.to("cpu", None if suffix == "alpha" else dtype)
            if not torch.isfinite(value).all():
                raise ValueError(f"export: target {target!r} has numbers that are not finite in {value.dtype}")
            tensors[f"{name}.{suffix}"] = value.detach().clone(memory_format=torch.contiguous_format)
    ranks = {target: int(tensors[f"{name}.alpha"]) for name, target in paths_by_name.items()}
    algorithm = _algorithm(adapter)
    content = dump_tensors(tensors, _metadata(algorithm, max(ranks.values())))
    write_atomically(path, content)
    return KohyaFile(str(path), algorithm, ranks, len(content))


def _algorithm(adapter: Adapter) -> str:
    """Return the name of LyCORIS's algorithm; generated factors and tasks have no place in its own layouts."""
    name = adapter.method.name
    return name.partition("-")[0] if name in LAYOUTS and not adapter.per_example else "locon"


def _tensors_of(adapter: Adapter, target: str, update: LowRankUpdate) -> dict[str, Tensor]:
    """Return the tensors of one target by their suffixes."""
    # LyCORIS has cores for the positions of a kernel only
    has_core = "tucker" in adapter.method.name
    if _algorithm(adapter) == "locon" or (has_core and update.down[0, 0].numel() == 1):
        return locon_tensors(update)
    layer = adapter.layers[target]
    kernel = getattr(layer.base, "kernel_size", ())
    factors = {name: _with_kernel_axes(adapter, f"{target}.{name}", kernel) for name in adapter.method.factors}
    try:
        return LAYOUTS[adapter.method.name](factors, layer.bound.scale)
    except ValueError as error:
        raise ValueError(f"export: target {target!r}: {error}") from None


def _with_kernel_axes(adapter: Adapter, key: str, kernel: Sequence[int]) -> Tensor:
    """Return a stored factor (*kernel, ..), with all axes of the kernel: that of a Conv3d has two modes."""
    factor, modes = adapter.factors[key], adapter.layout.params[key].modes
    kernel_modes = sum(mode in KERNEL_MODES for mode in modes)
    return factor.reshape(*kernel, *factor.shape[kernel_modes:]) if kernel_modes else factor


def _metadata(algorithm: str, rank: int) -> dict[str, str]:
    """Return what kohya's scripts write into the header, as far as it is known here."""
    is_plain = algorithm == "locon"
    return {
        "format": "pt",
        "ss_network_module": "networks.lora" if is_plain else "lycoris.kohya",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_network_args": json.dumps({} if is_plain else {"algo": algorithm}),
    }
