"""Trained adapters of any methods combined into one plain LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.attach import adapter_of, detach
from metalora.adapters.conditioning.condition import Condition
from metalora.fitting.combination import CombinationRule, How, Sign, combine_updates
from metalora.fitting.updates import LowRankUpdate
from metalora.io.adapter_file import EXTRA, is_adapter_file, load, read
from metalora.io.lora.attaching import attach_updates
from metalora.io.lora.import_ import read_any_lora
from metalora.io.lora.module_update import check_shapes
from metalora.io.lora.snapshot import low_rank_updates
from metalora.io.lora.trained_lora import in_model
from metalora.tensornet.truncation.truncated_svd import relative_error

Source = str | Path | Mapping[str, LowRankUpdate]
"""A trained adapter: a file, a folder, or its updates by module path."""


@dataclass(frozen=True)
class Combination:
    """What a combination achieved.

    Attributes:
        ranks: Rank of every target, by module path.
        errors: |C - B A|_F / |C|_F of every target, C being the combined Delta W; 0 unless the rank lost something.
        error: The same ratio over all targets together.
    """

    ranks: dict[str, int]
    errors: dict[str, float]
    error: float


@torch.no_grad()
def combine(
    model: nn.Module,
    sources: Sequence[Source],
    weights: Sequence[float],
    how: How = "sum",
    density: float | None = None,
    rank: int | None = None,
    sign: Sign = "total",
    seed: int = 0,
    check_base: bool = True,
) -> tuple[Adapter, Combination]:
    """Attach one LoRA that combines trained adapters of any methods by their Delta W.

    Args:
        model: The base model of all adapters, without an adapter.
        sources: Adapter files, folders of PEFT, files of kohya or LyCORIS, or updates by module path, such as those
            that `low_rank_updates` gives of an adapter for one condition or one task. A target that only some of them
            adapt counts as a zero update in the others.
        weights: One number for each. Negative ones subtract, except where signs are elected (TIES).
        how: "sum" is the weighted sum. The others prune the numbers of every Delta W first: "magnitude_prune" keeps
            the largest, "dare_linear" drops at random and rescales, "ties" and "dare_ties" then average, number by
            number, what has the elected sign.
        density: The part of the numbers of a Delta W that pruning keeps, above 0 and at most 1.
        rank: The largest rank of the result; larger ones are truncated, optimally in the Frobenius norm. None: a sum
            keeps all ranks and is exact; the other rules get the largest rank of the adapters at the target.
        sign: How a sign is elected: "total" by the sum of the numbers, "frequency" by the count of their signs.
        seed: Of what DARE drops.
        check_base: Whether to refuse a base with other weights than the adapter files were made on. Folders of PEFT and
            files of kohya and LyCORIS do not say theirs.

    Returns:
        The adapter, of method "lora", and a report with the ranks and the errors of truncation.

    Raises:
        ValueError: A source is not readable, belongs to another base or does more than add a Delta W; a weight, a
            density or a rank is out of range; the model has an adapter. The model is unchanged.

    Warns:
        UserWarning: A file also holds a module, such as a head; it is left out.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> first, second = (
        ...     {"0": LowRankUpdate(down=torch.randn(2, 8), up=torch.randn(4, 2))} for _ in range(2)
        ... )
        >>> adapter, report = combine(model, [first, second], weights=[0.7, 0.3])
        >>> report.ranks, report.error
        ({'0': 4}, 0.0)
        >>> wanted = 0.7 * first["0"].up @ first["0"].down + 0.3 * second["0"].up @ second["0"].down
        >>> torch.allclose(adapter.delta("0"), wanted, atol=1e-5)
        True
    """
    rule = CombinationRule(how, density, sign, seed)
    if adapter_of(model) is not None:
        raise ValueError(f"combine: {type(model).__name__} already has an adapter: detach it first")
    updates = []
    for number, source in enumerate(sources):
        if isinstance(source, Mapping):
            name = f"combine: source {number}"
            placed = in_model(source, model, name)
            check_shapes(model, placed, name)
            updates.append(placed)
        else:
            updates.append(read_updates(model, source, check_base=check_base))
    products = combine_updates(updates, weights, rule, rank)
    adapter = attach_updates(
        model, {path: LowRankUpdate(product.left, product.right.mT) for path, product in products.items()}
    )
    ranks = {path: len(product.left) for path, product in products.items()}
    errors = {path: product.error for path, product in products.items()}
    return adapter, Combination(ranks, errors, relative_error(products.values()))


def read_updates(
    model: nn.Module,
    path: str | Path,
    condition: Condition | None = None,
    task: int | None = None,
    *,
    check_base: bool = True,
    allow_download: bool = False,
) -> dict[str, LowRankUpdate]:
    """Read a trained adapter as updates by the module paths of its base.

    Args:
        model: The base model, without an adapter; it has none afterwards.
        path: An adapter file, a folder of PEFT, or a file of kohya or LyCORIS.
        condition: The condition of one example, for an adapter file with generated factors.
        task: Number of the task, for an adapter file with tasks.
        check_base: Whether to refuse a base with other weights than the adapter file was made on.
        allow_download: Whether an extractor that an adapter file names may be downloaded.

    Returns:
        Module path -> update.

    Raises:
        ValueError: See `load`, `low_rank_updates` and `load_lora`; a condition or a task is given for a plain LoRA.

    Warns:
        UserWarning: The file also holds a module, such as a head; it is left out.

    Example:
        >>> import tempfile
        >>> from metalora import AdapterConfig, attach, save
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("vera", rank=2, targets=("0",)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/adapter.safetensors")
        ...     detach(model)
        ...     updates = read_updates(model, f"{folder}/adapter.safetensors")
        >>> {path: tuple(update.down.shape) for path, update in updates.items()}
        {'0': (2, 8)}
    """
    if not is_adapter_file(path):
        if condition is not None or task is not None:
            raise ValueError(f"{path}: a plain LoRA, which has neither a condition nor tasks")
        return read_any_lora(model, path)
    _, tensors = read(path)
    left_out = [name.removeprefix(EXTRA) for name in tensors if name.startswith(EXTRA)]
    if left_out:
        warnings.warn(
            f"{path}: {len(left_out)} tensors of a further module are left out: {left_out[0]!r}", stacklevel=2
        )
    adapter = load(model, path, check_base=check_base, allow_download=allow_download)
    try:
        return low_rank_updates(adapter, condition, task)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    finally:
        detach(model)
