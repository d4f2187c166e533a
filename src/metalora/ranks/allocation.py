"""Ranks for a number of parameters, mode by mode, from the singular values of what a Tucker network stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from metalora.adapters.layout import FactorParam, Layout, TargetLayout, build_layout, read_slice
from metalora.adapters.targets import TRANSPOSED, find_targets
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.methods.resolve import resolve
from metalora.tensornet.truncation.greedy import largest_values_first

NEGLIGIBLE_VALUE = 1e-7  # of a mode's largest singular value: the rounding of a Gram matrix; such values get no rank


@torch.no_grad()
def ranks_by_spectra(
    model: nn.Module, config: AdapterConfig, params: int, tensors: Mapping[str, Tensor] | None = None
) -> AdapterConfig:
    """Choose a rank for every mode of a Tucker method, for a number of parameters.

    T is the tensor that a network of the method stacks (in x out x layer, say), made of the targets' weights; s_m are
    its singular values unfolded along mode m (those of HOSVD), over all networks of the method. From rank one
    everywhere, the largest next value s_m[j] / s_m[0] is accepted if there is room for it, until none is left.

    Args:
        model: The base model.
        config: The configuration; its rank is ignored.
        params: The largest number of learned parameters.
        tensors: Path -> a tensor of the shape of the target's weight that is stacked in its place, such as a gradient
            or a trained update.

    Returns:
        The configuration with a rank for every bond.

    Raises:
        ValueError: A method that is not a Tucker network, fewer parameters than rank one has, or a tensor that is
            missing or has another shape.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> config = AdapterConfig("fact-tk", targets="all")
        >>> sorted(ranks_by_spectra(net, config, params=60).rank)
        ['r1', 'r2', 'r3']
    """
    resolved = resolve(replace(config, rank=1, clip_rank=False))  # the open axes do not depend on the rank
    method, targets = resolved.method, find_targets(model, config.targets, config.exclude)
    leaves = _leaf_factors(method)
    layout = build_layout(targets, resolved)
    if layout.num_params() > params:
        raise ValueError(f"ranks: {method.name!r} has {layout.num_params()} numbers at rank one, above {params}")
    stacked = {target.path: _stacked_tensor(model, target.path, tensors) for target in targets}
    ranks = largest_values_first(
        spectra(layout, leaves, stacked),
        lambda ranks: _num_params(layout, ranks) <= params,
        negligible=NEGLIGIBLE_VALUE,
    )
    return replace(config, rank=ranks, clip_rank=False)


def _num_params(layout: Layout, ranks: Mapping[str, int]) -> int:
    """The numbers in all stored factors if the bonds have these sizes."""
    return sum(
        prod(ranks.get(mode, size) for mode, size in zip(param.modes, param.shape, strict=True))
        for param in layout.params.values()
    )


def _leaf_factors(method: Method) -> dict[str, str]:
    """Bond -> the factor that it joins to the core.

    Raises:
        ValueError: The method is not a Tucker network.
    """
    num_bonds = len(method.rank_bonds)
    cores: list[str] = []
    leaves: dict[str, str] = {}
    for factor, modes in method.network.factors.items():
        bonds = [mode for mode in modes if mode in method.rank_bonds]
        if len(bonds) == len(modes) == num_bonds:  # bonds alone, and all of them
            cores.append(factor)
        elif len(bonds) == 1:
            leaves[bonds[0]] = factor
    is_complete = len(method.network.factors) == num_bonds + 1
    has_other_factors = method.non_trainable or method.composites
    # a frozen factor or a product of factors is neither a leaf nor the core
    if len(cores) != 1 or len(leaves) != num_bonds or not is_complete or has_other_factors:
        raise ValueError(
            f"ranks: {method.name!r} is not a Tucker network (a factor for every mode, and a core), so it has no "
            "spectra"
        )
    return leaves


def spectra(layout: Layout, leaves: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the singular values of the stacked tensors, unfolded along the modes of every leaf factor.

    Args:
        layout: The layout of the method at rank one.
        leaves: Bond -> the factor that it joins to the core.
        tensors: Path -> a tensor of the shape of the target's weight.

    Returns:
        Bond -> singular values (n,), the largest first, as the root of the sum of squares over all networks.

    Example:
        >>> from metalora.methods.resolve import resolve
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
        >>> resolved = resolve(AdapterConfig("fact-tk", rank=1))
        >>> layout = build_layout(find_targets(model, ("0", "1"), ()), resolved)
        >>> values = spectra(layout, {"r2": "V"}, {"0": model[0].weight, "1": model[1].weight})
        >>> values["r2"].shape
        torch.Size([4])
    """
    by_modes = {path: _by_modes(layout.targets[path], tensor) for path, tensor in tensors.items()}
    values: dict[str, Tensor] = {}
    for bond, factor in leaves.items():
        squares: list[Tensor] = []
        for key, param in layout.params.items():
            if param.factor == factor:
                # the unfolding of all targets is never formed: the eigenvalues of its Gram matrix (n, n) are the
                # squares of its singular values
                gram = _gram(key, _shape_without(param, bond), factor, layout, by_modes)
                squares.append(torch.linalg.eigvalsh(gram).flip(0).clamp_min(0))  # (n,), the largest first
        longest = max(len(square) for square in squares)
        # networks of unequal widths have unequally many values
        padded = [nn.functional.pad(square, (0, longest - len(square))) for square in squares]
        values[bond] = torch.stack(padded).sum(0).sqrt()
    return values


def _shape_without(param: FactorParam, bond: str) -> tuple[int, ...]:
    """The factor's shape, its bond being of size one."""
    return tuple(1 if mode == bond else size for mode, size in zip(param.modes, param.shape, strict=True))


def _gram(key: str, shape: Sequence[int], factor: str, layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """The Gram matrix X X' (n, n) of the unfolding X (n, everything else), n being the flat axis of a stored factor.

    Each target fills the rows that it reads; two targets have a common product only if they are in the same place along
    all modes that the factor does not have.
    """
    size = prod(shape)
    gram = torch.zeros(size, size, dtype=torch.float64)  # it squares the condition number
    entries = torch.arange(size).reshape(*shape)
    readers = [target for target in layout.targets.values() if target.views[factor].key == key]
    rows = {reader.target.path: read_slice(entries, reader.views[factor]).flatten() for reader in readers}
    for first in readers:
        for second in readers:
            if not _same_elsewhere(first, second, factor):
                continue
            x = _unfolded(first, factor, tensors[first.target.path])  # (rows of the first target, everything else)
            y = _unfolded(second, factor, tensors[second.target.path])  # (rows of the second, everything else)
            if x.shape[1:] == y.shape[1:]:  # targets of unequal widths have no common columns
                gram[rows[first.target.path][:, None], rows[second.target.path]] += x @ y.mT
    return gram


def _same_elsewhere(first: TargetLayout, second: TargetLayout, factor: str) -> bool:
    """Whether two targets read the same of all factors but one."""
    other_factors = [name for name in first.views if name != factor]
    return all(
        first.views[name].key == second.views[name].key
        and dict(first.views[name].index) == dict(second.views[name].index)
        for name in other_factors
    )


def _unfolded(layout: TargetLayout, factor: str, tensor: Tensor) -> Tensor:
    """(what the target has of the factor's modes, everything else)."""
    modes = [*layout.network.inputs, *layout.network.outputs]
    factor_axes = [modes.index(mode) for mode in layout.network.factors[factor] if mode in modes]
    other_axes = [axis for axis in range(len(modes)) if axis not in factor_axes]
    num_rows = prod(tensor.shape[axis] for axis in factor_axes)
    return tensor.permute(*factor_axes, *other_axes).reshape(num_rows, -1)


def _by_modes(layout: TargetLayout, tensor: Tensor) -> Tensor:
    """A tensor in the layout of the weight -> (*modes of the input side, *modes of the output side), in float64."""
    tensor = tensor.detach().double().cpu()
    if layout.target.kind not in TRANSPOSED:
        tensor = tensor.movedim(0, -1)  # (out, in, kh, kw) -> (in, kh, kw, out)
    return tensor.reshape(*(layout.sizes[mode] for mode in (*layout.network.inputs, *layout.network.outputs)))


def _stacked_tensor(model: nn.Module, path: str, tensors: Mapping[str, Tensor] | None) -> Tensor:
    """The weight of a target, (out, in), (out, in, kh, kw) or transposed, or the tensor that is given in its place."""
    weight = model.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    if tensors is None:
        if weight.is_meta:
            raise ValueError(f"ranks: the weights of {type(model).__name__} were not loaded")
        return weight
    if path not in tensors or tensors[path].shape != weight.shape:
        actual = tuple(tensors[path].shape) if path in tensors else "none"
        raise ValueError(f"ranks: tensor of target {path!r} is {actual}, expected one of shape {tuple(weight.shape)}")
    return tensors[path]
