"""Mix trained adapters: all of them frozen, with a small gate that weights them for every input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.all_or_nothing import unchanged_on_error
from metalora.adapters.attach import attach
from metalora.adapters.conditioning.features import Inputs
from metalora.config import AdapterConfig, ConditionConfig
from metalora.io.lora.combine import read_updates
from metalora.tensornet.truncation.truncated_svd import truncated_svd

Pairs = dict[str, tuple[Tensor, Tensor]]  # path of a target -> Left (k, i, *kernel) and scale . Mid . Right (k, o)


def mixture(
    model: nn.Module,
    paths: Sequence[str | Path],
    condition: ConditionConfig | None = None,
    *,
    example: Inputs | None = None,
    extractor: nn.Module | None = None,
    check_base: bool = True,
) -> Adapter:
    """Attach several trained adapters, frozen, and a gate that learns how to mix them.

    ΔW(x) = Σ_n g_n(x) ΔW_n at every target, with g the softmax of the logits that a mapping net makes from features of
    the input (after X-LoRA, arXiv:2402.07148, whose gate reads each token instead). All weights are equal at the start,
    so that the mixture starts as the mean of the adapters. It is the method "moe-lora" whose experts are the exact LoRA
    pairs of the adapters, in their own scales, filled up with zeros to equal ranks; `metalora.save` writes them too.

    Args:
        model: The base model of the adapters, without an adapter.
        paths: Files of `metalora.save`, folders of PEFT's LoRA, or files of kohya or LyCORIS; at least two, with the
            same targets.
        condition: Where the features come from; None: `ConditionConfig()`. With scope "constant" the gate is learned
            without features, one for each target.
        example: Inputs from which the sizes of the features follow, as in `metalora.attach`.
        extractor: The network of condition source "extractor", as in `metalora.attach`.
        check_base: Whether to refuse a base with other weights than the adapter files were made on.

    Returns:
        The adapter; only its gate is trained.

    Raises:
        ValueError: Fewer than two paths, a file of another base, files with different targets, or an adapter that is
            not a plain LoRA: generated or with tasks, with biases or magnitudes, or behind the layer. The model is
            unchanged.

    Example:
        >>> import metalora, tempfile
        >>> model = nn.Sequential(nn.Linear(8, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for rank in (1, 2):
        ...         _ = attach(model, AdapterConfig("lora", rank=rank, targets="0"))
        ...         metalora.save(model, f"{folder}/{rank}")
        ...         metalora.detach(model)
        ...     adapter = mixture(model, [f"{folder}/1", f"{folder}/2"], ConditionConfig(scope="constant"))
        >>> adapter.num_params(), adapter.factors["0.A"].shape
        (2, torch.Size([2, 8, 2]))
    """
    if len(paths) < 2:
        raise ValueError(f"mixture: {len(paths)} adapters, expected at least two files or folders")
    experts = [_pairs(model, path, check_base) for path in paths]
    targets = experts[0].keys()
    for path, expert in zip(paths, experts, strict=True):
        if different := sorted(expert.keys() ^ targets):
            raise ValueError(f"mixture: {paths[0]} and {path} have different targets, such as {different[0]!r}")
    ranks = {target: max(len(expert[target][0]) for expert in experts) for target in targets}
    largest = max(ranks.values())
    config = AdapterConfig(
        "moe-lora",
        rank=len(experts) * largest,  # "moe-lora" divides it among the experts
        rank_pattern={target: len(experts) * rank for target, rank in ranks.items() if rank != largest},
        targets=tuple(targets),
        experts=len(experts),
        frozen=("A", "B"),
        init={"B": "normal"},  # a frozen zero is refused; the experts take its place
        condition=ConditionConfig() if condition is None else condition,
    )
    with unchanged_on_error(model, extractor):
        adapter = attach(model, config, example=example, extractor=extractor)
        _fill(adapter, experts)
    return adapter


@torch.no_grad()
def _pairs(model: nn.Module, path: str | Path, check_base: bool) -> Pairs:
    """Return the exact LoRA pairs of a trained adapter, their ranks at most those of the weights."""
    try:
        updates = read_updates(model, path, check_base=check_base)
    except ValueError as error:
        of_one = "for a condition or a task, export_lora writes one LoRA that mixture takes"
        raise ValueError(f"mixture: {error}; {of_one}") from None
    pairs = {}
    for target, (down, up) in updates.items():
        exact = truncated_svd(down, up.mT, min(down[0].numel(), len(up)))  # no weight has a higher rank
        pairs[target] = exact.left, exact.right
    return pairs


@torch.no_grad()
def _fill(adapter: Adapter, experts: Sequence[Pairs]) -> None:
    """Write the pairs into the frozen factors of the experts; lower ranks are filled up with zeros."""
    factors = adapter.factors
    adapter.given = tuple(f"{target}.{factor}" for target in adapter.layers for factor in ("A", "B"))
    for target in adapter.layers:
        a, b = factors[f"{target}.A"].zero_(), factors[f"{target}.B"].zero_()
        for number, expert in enumerate(experts):
            left, right = expert[target]
            inputs_first = left.movedim((0, 1), (-1, -2))  # (k, i, *kernel) -> (*kernel, i, k)
            a[number, ..., : len(left)] = inputs_first.reshape(*a.shape[1:-1], len(left))
            b[number, : len(right)] = right
