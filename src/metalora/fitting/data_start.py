"""Starts from the inputs of every target: EVA's A (arXiv:2410.07170), CorDA's A0 and B0 (arXiv:2406.05223)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.features import Inputs, run, token_mask
from metalora.adapters.init import input_rows
from metalora.adapters.resize import resize
from metalora.config import AdapterConfig

KINDS = ("linear", "conv1d_gpt2")
DAMPING = 0.01  # of CorDA: what is added to the covariance, as a share of the mean of its diagonal


class InputMoments:
    """Number, mean and covariance of the inputs (n, in) of one target, in float64 on the CPU.

    Example:
        >>> moments = InputMoments(2)
        >>> moments.add(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        >>> moments.covariance()[0, 0].item()
        1.0
    """

    def __init__(self, width: int):
        self.count = 0
        self.sums = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, inputs: Tensor) -> None:
        """Count further inputs (n, in)."""
        inputs = inputs.double()
        self.count += len(inputs)
        self.sums += inputs.sum(0).cpu()
        self.products += (inputs.mT @ inputs).cpu()

    def covariance(self) -> Tensor:
        """The covariance (in, in)."""
        mean = self.sums / self.count
        return self.products / self.count - torch.outer(mean, mean)


@torch.no_grad()
def start_from_data(
    model: nn.Module, batches: Inputs | Iterable[Inputs], *, rho: float = 1.0, part: Literal["first", "last"] = "first"
) -> dict[str, int]:
    """Start an adapter with `init="eva"` or "corda" from the inputs of its targets; the model starts as the base.

    EVA: the columns of A are the r leading principal directions of the inputs x, and B is zero. With rho > 1 the ranks
    are shared out anew: each target has at most round(rho r) directions, and of all of them those that explain the
    largest part of the variance at their target stay, as many as before. Every target keeps at least one; the scale of
    each stays as it is.

    CorDA: W C = U S V^T with C = mean of x x^T, and s B0^T A0^T = U_r S_r (V^T C^-1)_r for r of the singular values:
    the first, to learn the task better (the paper's IPM), or the last, to keep what the base knows (KPM).

    Args:
        model: A model with an adapter that starts from data, or a PeftModel with one.
        batches: Inputs of the model: one batch, or several. Tokens outside of `attention_mask` do not count.
        rho: Of EVA: the largest rank of a target, as a multiple of the configured one; 1: all keep it.
        part: Of CorDA: which singular values.

    Returns:
        Path -> rank.

    Raises:
        ValueError: The model has no such adapter, a target is not linear, there are too few inputs for a rank, or `rho`
            or `part` does not fit. Nothing is changed then.

    Example:
        >>> from metalora import AdapterConfig, attach
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0", "2"), init="eva"))
        >>> start_from_data(model, [torch.randn(16, 8), torch.randn(16, 8)], rho=2.0)
        {'0': 2, '2': 2}
    """
    adapter = _adapter_to_start(model)
    _check(adapter, rho, part)
    single = isinstance(batches, Tensor) or hasattr(batches, "keys")
    moments = {path: InputMoments(target.sizes["in"]) for path, target in adapter.targets.items()}
    with _counted(adapter, moments) as state, adapter.running_frozen():
        for batch in cast(Iterable[Inputs], [batches] if single else batches):
            state["mask"] = token_mask(batch)
            run(model, batch)
    ranks = {path: adapter.factors[f"{path}.A"].shape[-1] for path in adapter.targets}
    for path, rank in ranks.items():
        if moments[path].count <= rank:
            raise ValueError(f"start_from_data: {moments[path].count} inputs of target {path!r} for its rank {rank}")
    if adapter.config.init == "corda":
        _start_corda(adapter, moments, part)
    else:
        ranks = _start_eva(adapter, moments, ranks, rho)
    adapter.started = True
    return ranks


def _start_eva(
    adapter: Adapter, moments: Mapping[str, InputMoments], ranks: dict[str, int], rho: float
) -> dict[str, int]:
    """Set every A, and return the ranks by path."""
    directions = {path: _principal_directions(of_path) for path, of_path in moments.items()}
    if rho != 1:
        ranks = _shared_out(ranks, {path: shares for path, (_, shares) in directions.items()}, rho)
        _take_ranks(adapter, ranks)
    for path, (columns, _) in directions.items():
        adapter.learned[f"{path}.A"].copy_(columns[:, : ranks[path]])
    return ranks


def _start_corda(adapter: Adapter, moments: Mapping[str, InputMoments], part: str) -> None:
    """Set every A0 and B0."""
    starts: dict[str, Tensor] = {}
    for path, target in adapter.targets.items():
        weight = adapter.layers[path].get_submodule("base").weight
        assert isinstance(weight, Tensor)
        rank = adapter.factors[f"{path}.A_0"].shape[-1]
        factors = _corda_factors(input_rows(weight, target), moments[path], rank, part, adapter.scale_of(path))
        starts |= dict(zip((f"{path}.A_0", f"{path}.B_0"), factors, strict=True))
    for key, value in starts.items():
        adapter.stored_value(key).copy_(value)


def _corda_factors(weight: Tensor, moments: InputMoments, rank: int, part: str, scale: float) -> tuple[Tensor, Tensor]:
    """A0 (in, rank) and B0 (rank, out) of a weight (in, out), by CorDA, eq. 3 to 5."""
    if scale <= 0:
        raise ValueError(f"start_from_data: CorDA needs a scale above zero, got {scale}: set alpha")
    covariance = moments.products / moments.products.diagonal().mean()
    # A direction without inputs would have no inverse; PEFT adds the same share of the mean.
    covariance = covariance + DAMPING * torch.eye(len(covariance), dtype=covariance.dtype)
    u, s, v = torch.linalg.svd(weight.mT @ covariance, full_matrices=False)  # (out, n), (n,), (n, in)
    chosen = slice(rank) if part == "first" else slice(len(s) - rank, None)
    roots = (s[chosen] / scale).sqrt()  # the scale multiplies A0 B0
    return torch.linalg.solve(covariance, v[chosen].mT) * roots, roots[:, None] * u[:, chosen].mT


def _adapter_to_start(model: nn.Module) -> Adapter:
    """The adapter of a model that waits for its data."""
    adapters = [module for module in model.modules() if isinstance(module, Adapter) and not module.started]
    if not adapters:
        name = type(model).__name__
        raise ValueError(f"start_from_data: {name} has no adapter with init='eva' or 'corda' that waits for data")
    return adapters[0]


def _check(adapter: Adapter, rho: float, part: str) -> None:
    if rho != 1 and adapter.config.init != "eva":
        raise ValueError(f"start_from_data: rho is {rho}, expected 1: only EVA shares ranks out")
    if part not in ("first", "last"):
        raise ValueError(f"start_from_data: part is {part!r}, expected 'first' or 'last'")
    if part != "first" and adapter.config.init != "corda":
        raise ValueError(f"start_from_data: part is {part!r}, which only CorDA has")
    for path, target in adapter.targets.items():
        if target.kind not in KINDS:
            raise ValueError(f"start_from_data: target {path!r} is a {target.kind}, expected linear layers")
    if rho < 1:
        raise ValueError(f"start_from_data: rho is {rho}, expected at least 1")
    in_model = {id(module) for module in adapter.model.modules()}
    if rho != 1 and not all(id(layer) in in_model for layer in adapter.layers.values()):
        raise ValueError(
            f"start_from_data: rho is {rho}, expected 1: PEFT's configuration of the adapter has its ranks"
        )


@contextmanager
def _counted(adapter: Adapter, moments: Mapping[str, InputMoments]) -> Iterator[dict[str, Tensor | None]]:
    """Within this block the inputs of all targets are counted; the dictionary takes the mask of the tokens, "mask"."""
    state: dict[str, Tensor | None] = {"mask": None}
    handles = []
    for path, layer in adapter.layers.items():
        hook = partial(_count, moments[path], state)
        handles.append(layer.get_submodule("base").register_forward_pre_hook(hook))
    training = [module for module in adapter.model.modules() if module.training]
    try:
        for module in training:  # one by one, so that each gets its own mode back
            module.training = False
        yield state
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


def _count(moments: InputMoments, state: Mapping[str, Tensor | None], module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a target: count its input (*, in), without what the mask of the tokens leaves out."""
    x, mask = args[0], state["mask"]
    if mask is not None and x.shape[:-1] == mask.shape:
        x = x[mask.bool()]
    moments.add(x.reshape(-1, x.shape[-1]))


def _principal_directions(moments: InputMoments) -> tuple[Tensor, Tensor]:
    """The principal directions of the inputs as columns (in, in), and the share of the variance of each (in,)."""
    variances, columns = torch.linalg.eigh(moments.covariance())  # in ascending order
    variances = variances.flip(0).clamp_min(0)
    return columns.flip(1), variances / variances.sum().clamp_min(torch.finfo(torch.float64).tiny)


def _shared_out(ranks: Mapping[str, int], shares: Mapping[str, Tensor], rho: float) -> dict[str, int]:
    """Path -> rank: one for every target, the others to the directions with the largest shares of the variance."""
    candidates = []
    for path, rank in ranks.items():
        largest = min(round(rho * rank), len(shares[path]))
        candidates += [(-float(share), path) for share in shares[path][1:largest]]
    chosen = [path for _, path in sorted(candidates, key=lambda candidate: candidate[0])]
    chosen = chosen[: sum(ranks.values()) - len(ranks)]
    return {path: 1 + chosen.count(path) for path in ranks}


def _take_ranks(adapter: Adapter, ranks: Mapping[str, int]) -> None:
    """Give the targets their ranks, at the scale that each has."""
    config = adapter.config
    patterns: dict[str, Any] = {"rank_pattern": dict(ranks)}
    if config.alpha is not None:
        patterns["alpha_pattern"] = {path: _alpha(adapter, path, rank) for path, rank in ranks.items()}
    larger: AdapterConfig = replace(config, **patterns)
    factors = {}
    for path, rank in ranks.items():
        for name, axis in (("A", -1), ("B", 0)):
            factor = adapter.factors[f"{path}.{name}"]
            shape = list(factor.shape)
            shape[axis] = rank
            factors[f"{path}.{name}"] = factor.new_zeros(shape)
    resize(adapter, larger, factors)


def _alpha(adapter: Adapter, path: str, rank: int) -> float:
    """The alpha with which a target of this rank has the scale that it has now."""
    return adapter.scale_of(path) / adapter.resolved.scale_for(rank, alpha=1.0)
