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

SMALLEST = 1e-7  # of a mode's largest singular value: below it a direction is rounding, that of a Gram matrix


@torch.no_grad()
def ranks_by_spectra(
    model: nn.Module, config: AdapterConfig, params: int, tensors: Mapping[str, Tensor] | None = None
) -> AdapterConfig:
    """The configuration with a rank for every mode, at most `params` learned numbers, by the largest directions.

    T is the tensor that a network of the method stacks (in x out x layer, say), made of the targets' weights; s_m its
    singular values unfolded along mode m (those of HOSVD), over all networks of the method. From rank one everywhere,
    the next value s_m[j] / s_m[0] that is largest is taken where there is room for it, until none is.

    tensors  path -> what is stacked in place of the weights, of their shapes, such as gradients or trained updates
    ValueError: a method that is no Tucker, fewer parameters than rank one has, a tensor missing or of another shape.
    """
    resolved = resolve(replace(config, rank=1, clip_rank=False))
    method, targets = resolved.method, find_targets(model, config.targets, config.exclude)
    leaves = _leaves(method)
    layout = build_layout(targets, resolved)
    if layout.num_params() > params:
        raise ValueError(f"ranks: {method.name!r} has {layout.num_params()} numbers at rank one, above {params}")
    values = spectra(layout, leaves, {target.path: _tensor(model, target.path, tensors) for target in targets})
    ranks = _greedy(values, layout, params)
    return replace(config, rank=ranks, clip_rank=False)


def _leaves(method: Method) -> dict[str, str]:
    """Bond -> the factor that it joins to the core; ValueError for what is no Tucker."""
    network = method.network
    own = {f: [m for m in term if m in method.rank_bonds] for f, term in network.factors.items()}
    cores = [f for f, term in network.factors.items() if len(own[f]) == len(term) == len(method.rank_bonds)]
    leaves = {bonds[0]: f for f, bonds in own.items() if len(bonds) == 1 and f not in cores}
    other = method.non_trainable or method.composites
    if len(cores) != 1 or len(leaves) != len(method.rank_bonds) or len(own) != len(leaves) + 1 or other:
        raise ValueError(
            f"ranks: {method.name!r} is no Tucker, a factor for every mode and a core, so it has no spectra"
        )
    return leaves


def spectra(layout: Layout, leaves: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bond -> the singular values of the stacked tensors unfolded along its factor's modes, the largest first."""
    shaped = {path: _shaped(layout.targets[path], tensor) for path, tensor in tensors.items()}
    found = {}
    for bond, factor in leaves.items():
        grams = {
            key: _gram(key, _without(one, bond), factor, layout, shaped)
            for key, one in layout.params.items()
            if one.factor == factor
        }
        every = [torch.linalg.eigvalsh(gram).flip(0).clamp_min(0) for gram in grams.values()]
        longest = max(map(len, every))
        found[bond] = sum(nn.functional.pad(one, (0, longest - len(one))) for one in every).sqrt()
    return found


def _without(stored: FactorParam, bond: str) -> tuple[int, ...]:
    """The factor's shape but for its bond, which is one."""
    return tuple(1 if mode == bond else n for mode, n in zip(stored.modes, stored.shape, strict=True))


def _gram(key: str, shape: Sequence[int], factor: str, layout: Layout, shaped: Mapping[str, Tensor]) -> Tensor:
    """X X' with X the unfolding (n, everything else), n the flat axes of the factor but its bond, by Gram matrices."""
    n = prod(shape)
    gram = torch.zeros(n, n, dtype=torch.float64)
    readers = [place for place in layout.targets.values() if place.views[factor].key == key]
    index = torch.arange(n).reshape(*shape)
    rows = {one.target.path: read_slice(index, one.views[factor]).flatten() for one in readers}
    for one in readers:
        for other in readers:
            if _same_elsewhere(one, other, factor):
                x, y = (_unfolded(p, factor, shaped[p.target.path]) for p in (one, other))
                if x.shape[1:] == y.shape[1:]:
                    gram[rows[one.target.path][:, None], rows[other.target.path]] += x @ y.mT
    return gram


def _same_elsewhere(one: TargetLayout, other: TargetLayout, factor: str) -> bool:
    """Whether two targets lie at the same place along all modes that the factor has not."""
    own = {f: dict(one.views[f].index) for f in one.views if f != factor}
    return all(
        one.views[f].key == other.views[f].key and index == dict(other.views[f].index) for f, index in own.items()
    )


def _unfolded(one: TargetLayout, factor: str, tensor: Tensor) -> Tensor:
    """(what the target has of the factor's modes, everything else)."""
    modes = [*one.network.inputs, *one.network.outputs]
    own = [modes.index(mode) for mode in one.network.factors[factor] if mode in modes]
    rest = [axis for axis in range(len(modes)) if axis not in own]
    return tensor.permute(*own, *rest).reshape(prod(tensor.shape[axis] for axis in own), -1)


def _shaped(one: TargetLayout, tensor: Tensor) -> Tensor:
    """A tensor in the layout of the weight -> an axis for every mode of the input and output side."""
    tensor = tensor.detach().double().cpu()
    tensor = tensor if one.target.kind in TRANSPOSED else tensor.movedim(0, -1)
    return tensor.reshape(*(one.sizes[mode] for mode in (*one.network.inputs, *one.network.outputs)))


def _tensor(model: nn.Module, path: str, tensors: Mapping[str, Tensor] | None) -> Tensor:
    weight = model.get_submodule(path).weight
    if tensors is None:
        if weight.is_meta:
            raise ValueError(f"ranks: the weights of {type(model).__name__} were not loaded")
        return weight
    if path not in tensors or tensors[path].shape != weight.shape:
        got = tuple(tensors[path].shape) if path in tensors else "none"
        raise ValueError(f"ranks: tensor of target {path!r} is {got}, expected one of shape {tuple(weight.shape)}")
    return tensors[path]


def _greedy(values: Mapping[str, Tensor], layout: Layout, params: int) -> dict[str, int]:
    """From rank one, the relatively largest next value first, where there is room for it."""

    def numbers(ranks: Mapping[str, int]) -> int:
        every = [(one.modes, one.shape) for one in layout.params.values()]
        return sum(prod(ranks.get(m, n) for m, n in zip(modes, shape, strict=True)) for modes, shape in every)

    ranks = dict.fromkeys(values, 1)
    steps = [(float(v / s[0].clamp_min(1e-300)), bond) for bond, s in values.items() for v in s[1:]]
    for value, bond in sorted(steps, reverse=True):
        larger = {**ranks, bond: ranks[bond] + 1}
        if value > SMALLEST and numbers(larger) <= params:
            ranks = larger
    return ranks
