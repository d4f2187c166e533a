"""The update of one module from the tensors that a file has for it, checked against the module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from metalora._util.shown import cut
from metalora.adapters.held_matrix import HeldMatrix, required_base
from metalora.fitting.updates import LowRankUpdate
from metalora.io.lora.lycoris import update_of
from metalora.io.lora.peft_config import RankAndScale
from metalora.io.lora.tensor_names import DOWN, UP


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
    kernel = tuple(module.kernel_size) if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else ()
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
    is_pair = 2 <= down.ndim <= 5 and up.ndim == down.ndim and up.shape[1] == len(down)  # linear, conv1d to conv3d
    if down.ndim > 2 and up.ndim == down.ndim and 0 < up.shape[1] < len(down):
        raise ValueError(
            f"{where} has lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)}, the LoRA of a grouped convolution, "
            "which in PEFT reads all groups: no change of its weight does that"
        )
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
    is_transposed = is_transposed or (isinstance(module, HeldMatrix) and module.transposed)
    if isinstance(module, _ConvTransposeNd):
        stored = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    if stored != (shape[::-1] if is_transposed else shape):
        raise ValueError(f"{source}: {path!r} has an update for a weight of {shape}, the model's is {stored}")


def check_shapes(model: nn.Module, updates: Mapping[str, LowRankUpdate], source: str | Path) -> None:
    """Raise a ValueError for an update that has not the shape of its module's weight."""
    for target, update in updates.items():
        check_shape(required_base(model, target), target, update, source)
