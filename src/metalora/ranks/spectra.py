"""Singular values of what the networks of a method stack, unfolded where a network can be cut in two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import torch
from torch import Tensor, nn

from metalora.adapters.layout import Layout, TargetLayout, read_slice
from metalora.adapters.weight_layout import outputs_first
from metalora.tensornet.topology import classify_topology, connected_components


@dataclass(frozen=True)
class Cut:
    """A cut of a network into two parts.

    A tensor has exact ranks at these bonds only if its unfolding (modes of one part, modes of the other) has a rank of
    at most the product of their sizes.

    Attributes:
        bonds: The bonds that join the parts: one in a train or a Tucker network, two in a ring.
        factors: The factors of one part.
    """

    bonds: tuple[str, ...]
    factors: tuple[str, ...]


def network_cuts(bonds_of_factor: Mapping[str, Sequence[str]]) -> list[Cut]:
    """List the cuts of a network: one at every bond, or, in a ring, one at every two bonds.

    Args:
        bonds_of_factor: Factor -> its bonds.

    Returns:
        The cuts; none for a network that is neither a chain, nor a tree, nor a ring.

    Example:
        >>> network_cuts({"A": ["a"], "B": ["a", "b"], "C": ["b"]})
        [Cut(bonds=('a',), factors=('A',)), Cut(bonds=('b',), factors=('A', 'B'))]
    """
    topology = classify_topology(list(bonds_of_factor.values()))
    if topology not in ("chain", "tree", "ring"):
        return []
    names = list(bonds_of_factor)
    cuts: list[Cut] = []
    for bonds in combinations(
        dict.fromkeys(sum(map(list, bonds_of_factor.values()), [])), 2 if topology == "ring" else 1
    ):
        kept = [[bond for bond in own if bond not in bonds] for own in bonds_of_factor.values()]
        first_part, _ = connected_components(kept)
        cuts.append(Cut(bonds, tuple(names[number] for number in first_part)))
    return cuts


def spectra(layout: Layout, cuts: Sequence[Cut], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Compute the singular values of the stacked tensors, unfolded at every cut.

    The weight of a target fills the rows and columns that it reads; what no target fills is zero.

    Args:
        layout: The layout of the method at rank one.
        cuts: The cuts of its network.
        tensors: Path -> a tensor of the shape of the target's weight.

    Returns:
        For every cut its singular values (n,), the largest first, as the root of the sum of squares over all networks.

    Example:
        >>> from metalora import AdapterConfig, find_targets
        >>> from metalora.adapters.layout import build_layout
        >>> from metalora.methods.resolve import resolve
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.Linear(6, 4))
        >>> layout = build_layout(find_targets(model, ("0", "1"), ()), resolve(AdapterConfig("lotr", rank=1)))
        >>> weights = {"0": model[0].weight, "1": model[1].weight}
        >>> [values] = spectra(layout, [Cut(("r1",), ("U",))], weights)  # inputs | layer, projection, outputs
        >>> stacked = torch.cat([model[0].weight, model[1].weight]).double()
        >>> bool(torch.allclose(values, torch.linalg.svdvals(stacked)))
        True
    """
    by_modes = {path: _by_modes(layout.targets[path], tensor) for path, tensor in tensors.items()}
    return [_spectrum(layout, cut, by_modes) for cut in cuts]


def network_owners(layout: Layout) -> dict[str, list[TargetLayout]]:
    """Map the owner of every network to the targets that read it; all factors of a target have one owner."""
    owners: dict[str, list[TargetLayout]] = {}
    for target in layout.targets.values():
        first_view = next(iter(target.views.values()))
        owners.setdefault(layout.params[first_view.key].owner, []).append(target)
    return owners


def open_size(layout: Layout, factor: str, owner: str) -> int:
    """The size of a factor's open modes at rank one, of the widest of its variants for several widths."""
    return max(prod(param.shape) for param in layout.params.values() if (param.factor, param.owner) == (factor, owner))


def _spectrum(layout: Layout, cut: Cut, tensors: Mapping[str, Tensor]) -> Tensor:
    """The singular values at a cut, over all networks."""
    squares = [_squared_values(layout, cut, targets, tensors) for targets in network_owners(layout).values()]
    longest = max(len(square) for square in squares)
    # networks of unequal widths have unequally many values
    return torch.stack([nn.functional.pad(square, (0, longest - len(square))) for square in squares]).sum(0).sqrt()


def _squared_values(layout: Layout, cut: Cut, targets: Sequence[TargetLayout], tensors: Mapping[str, Tensor]) -> Tensor:
    """The squared singular values of one network's unfolding X, as eigenvalues of X X', the largest first.

    X itself, (modes of one part, modes of the other) of all targets, is never formed: its smaller side is enough.
    """
    others = tuple(factor for factor in targets[0].views if factor not in cut.factors)
    rows, columns = sorted((cut.factors, others), key=lambda part: _side_size(layout, part, targets))
    gram = torch.zeros(2 * (_side_size(layout, rows, targets),), dtype=torch.float64)  # it squares the condition number
    blocks = [
        (
            _places(layout, rows, target, targets),
            _places(layout, columns, target, targets),
            _unfolded(target, rows, columns, tensors[target.target.path]),
        )
        for target in targets
    ]
    for first_rows, first_columns, first in blocks:
        for second_rows, second_columns, second in blocks:
            # both ascend, so that what they have in common is in one order
            in_both = torch.isin(first_columns, second_columns)
            if in_both.any():
                product = first[:, in_both] @ second[:, torch.isin(second_columns, first_columns)].mT
                gram[first_rows[:, None], second_rows] += product
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.flip(0).clamp_min(0)


def _variants(layout: Layout, factor: str, targets: Sequence[TargetLayout]) -> dict[str, int]:
    """Key of each variant of a factor for several widths -> its size; they lie one after another."""
    keys = dict.fromkeys(target.views[factor].key for target in targets)
    return {key: prod(layout.params[key].shape) for key in keys}


def _side_size(layout: Layout, factors: Collection[str], targets: Sequence[TargetLayout]) -> int:
    """The number of rows of an unfolding that has the modes of these factors in its rows."""
    return prod(sum(_variants(layout, factor, targets).values()) for factor in factors)


def _places(layout: Layout, factors: Sequence[str], target: TargetLayout, targets: Sequence[TargetLayout]) -> Tensor:
    """The rows (n,), ascending, that a target fills if an unfolding has the modes of these factors in its rows."""
    places = torch.zeros(1, dtype=torch.long)
    for factor in factors:
        variants, view = _variants(layout, factor, targets), target.views[factor]
        start = sum(
            size for key, size in variants.items() if list(variants).index(key) < list(variants).index(view.key)
        )
        entries = torch.arange(variants[view.key]).reshape(layout.params[view.key].shape)
        own = start + read_slice(entries, view).flatten()
        places = (places[:, None] * sum(variants.values()) + own).flatten()
    return places


def _unfolded(target: TargetLayout, rows: Sequence[str], columns: Sequence[str], tensor: Tensor) -> Tensor:
    """(what the target has of the modes of the first factors, what it has of those of the others)."""
    modes = [*target.network.inputs, *target.network.outputs]
    row_axes, column_axes = (
        [modes.index(mode) for factor in part for mode in target.network.factors[factor] if mode in modes]
        for part in (rows, columns)
    )
    num_rows = prod(tensor.shape[axis] for axis in row_axes)
    return tensor.permute(*row_axes, *column_axes).reshape(num_rows, -1)


def _by_modes(layout: TargetLayout, tensor: Tensor) -> Tensor:
    """A tensor in the layout of the weight -> (*modes of the input side, *modes of the output side), in float64."""
    tensor = tensor.detach().double().cpu()
    tensor = outputs_first(tensor[None], layout.target)[0].movedim(0, -1)  # (out, in, kh, kw) -> (in, kh, kw, out)
    return tensor.reshape(*(layout.sizes[mode] for mode in (*layout.network.inputs, *layout.network.outputs)))
