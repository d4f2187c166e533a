"""Ranks for a number of parameters, bond by bond, from the singular values of what a network stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, prod

import torch
from torch import Tensor, nn

from metalora.adapters.layout import Layout, build_layout
from metalora.adapters.usable_targets import usable_targets
from metalora.config import AdapterConfig
from metalora.methods.method import Method
from metalora.methods.resolve import ResolvedMethod, resolve
from metalora.ranks.spectra import Cut, network_cuts, network_owners, open_size, spectra
from metalora.tensornet.topology import classify_topology

NEGLIGIBLE_VALUE = 1e-7  # of a cut's largest singular value: the rounding of a Gram matrix; such values get no rank


@torch.no_grad()
def ranks_by_spectra(
    model: nn.Module, config: AdapterConfig, params: int, tensors: Mapping[str, Tensor] | None = None
) -> AdapterConfig:
    """Choose a rank for every bond of a tensor train, a Tucker network or a ring, for a number of parameters.

    T is the tensor that a network of the method stacks (in x out x layer, say), made of the targets' weights; s_c are
    its singular values, unfolded at cut c of the network, over all networks of the method. A cut of a train is at one
    bond, as in TT-SVD, of a Tucker network between one mode and all others, as in HOSVD, and of a ring at two bonds,
    whose sizes multiply. With n the size of the bond, or the product of the two sizes, no more than the share

        k_c = (s_c[1]^2 + ... + s_c[n]^2) / |T|^2

    of the squared norm of T can be kept. From rank one everywhere, the bond is raised that makes the product of all k_c
    grow by the largest factor for each parameter that it adds (in logarithms), until there is no room for any. Bonds
    without which a raise would be of no use are raised with it: a bond is not larger than the product of the other axes
    of a factor. In a ring one raise counts at every cut that has the bond.

    Args:
        model: The base model.
        config: The configuration; its rank is ignored.
        params: The largest number of learned parameters.
        tensors: Path -> a tensor of the shape of the target's weight that is stacked in its place, such as a gradient
            or a trained update.

    Returns:
        The configuration with a rank for every bond.

    Raises:
        ValueError: A method of another network or of a single rank, fewer parameters than rank one has, or a tensor
            that is missing or has another shape.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> config = AdapterConfig("fact-tk", targets="all")
        >>> sorted(ranks_by_spectra(net, config, params=60).rank)
        ['r1', 'r2', 'r3']
    """
    resolved = resolve(replace(config, rank=1, clip_rank=False))  # the open axes do not depend on the rank
    method, (targets, _) = resolved.method, usable_targets(model, config)
    cuts = _cuts(resolved)
    layout = build_layout(targets, resolved)
    if layout.num_params() > params:
        raise ValueError(f"ranks: {method.name!r} has {layout.num_params()} numbers at rank one, above {params}")
    stacked = {target.path: _stacked_tensor(model, target.path, tensors) for target in targets}
    values = spectra(layout, cuts, stacked)
    kept = [torch.where(s > NEGLIGIBLE_VALUE * s[0], s.square(), 0).cumsum(0).tolist() for s in values]
    return replace(config, rank=_Growth(layout, method, cuts, kept).ranks(params), clip_rank=False)


@dataclass(frozen=True)
class _Growth:
    """Ranks that grow from one, the raise first that is worth most for each parameter.

    Attributes:
        layout: The layout at rank one.
        method: The method.
        cuts: The cuts of its network.
        kept: For every cut the sums of the first 1, 2, ... squared singular values.
    """

    layout: Layout
    method: Method
    cuts: Sequence[Cut]
    kept: Sequence[Sequence[float]]

    def ranks(self, params: int) -> dict[str, int]:
        """The ranks for a number of parameters."""
        ranks = dict.fromkeys(self.method.rank_bonds, 1)
        open_sizes = {
            factor: min(open_size(self.layout, factor, owner) for owner in network_owners(self.layout))
            for factor in self.method.network.factors
        }
        while True:
            offers: list[tuple[float, dict[str, int]]] = []
            for bond in ranks:
                larger = self._raised(ranks, bond, open_sizes)
                if larger is not None and self._num_params(larger) <= params:
                    added = self._num_params(larger) - self._num_params(ranks)
                    offers.append((self._gain(ranks, larger) / added, larger))
            worth, best = max(offers, key=lambda offer: offer[0], default=(0.0, ranks))
            if worth == 0:
                return ranks
            ranks = best

    def _raised(self, ranks: Mapping[str, int], bond: str, open_sizes: Mapping[str, int]) -> dict[str, int] | None:
        """The next larger rank of a bond, with what it needs of the others; None if no other can give it."""
        larger = {**ranks, bond: ranks[bond] + 1}
        while (partners := self._too_small(larger, open_sizes)) is not None:
            gains = {other: self._gain(larger, {**larger, other: larger[other] + 1}) for other in partners}
            best = max(partners, key=lambda other: gains[other], default=None)
            if best is None or gains[best] == 0:
                return None
            larger[best] += 1
        return larger

    def _too_small(self, ranks: Mapping[str, int], open_sizes: Mapping[str, int]) -> list[str] | None:
        """The other bonds of a factor that is too small for one of its bonds; None if there is no such factor."""
        for factor, modes in self.method.network.factors.items():
            bonds = [mode for mode in modes if mode in ranks]
            for bond in bonds:
                others = [other for other in bonds if other != bond]
                if ranks[bond] > open_sizes[factor] * prod(ranks[other] for other in others):
                    return others
        return None

    def _gain(self, ranks: Mapping[str, int], larger: Mapping[str, int]) -> float:
        """The logarithm of how many times as much the larger ranks keep at all cuts together."""
        gain = 0.0
        for cut, kept in zip(self.cuts, self.kept, strict=True):
            before, after = (min(prod(sizes[bond] for bond in cut.bonds), len(kept)) for sizes in (ranks, larger))
            if kept[0] > 0:  # tensors of zeros keep nothing at any rank
                gain += log(kept[after - 1] / kept[before - 1])
        return gain

    def _num_params(self, ranks: Mapping[str, int]) -> int:
        """The learned numbers in all stored factors if the bonds have these sizes."""
        return sum(
            prod(ranks.get(mode, size) for mode, size in zip(param.modes, param.shape, strict=True))
            for param in self.layout.params.values()
            if not param.frozen
        )


def _cuts(resolved: ResolvedMethod) -> list[Cut]:
    """The cuts of the method's network.

    Raises:
        ValueError: Its ranks do not follow from unfoldings.
    """
    method, factors = resolved.method, resolved.method.network.factors
    bonds_of_factor = {
        name: [mode for mode in modes if mode in method.network.bonds] for name, modes in factors.items()
    }
    cuts = network_cuts(bonds_of_factor)
    if len(method.rank_bonds) == 1 and (cuts or classify_topology(list(bonds_of_factor.values())) == "shared bond"):
        raise ValueError(
            f"ranks: {method.name!r} has one rank, so that there is nothing to share out among bonds, and singular "
            "values of unfoldings say only from which rank on a sum of so many products can be exact, not which rank "
            "is enough; --match-params alone (metalora.match_parameters) chooses the largest rank"
        )
    is_plain_product = method.form == "low_rank" and not (
        method.non_trainable or method.composites or method.components or method.separate_factors
    )
    has_one_network = len({method.replication_of(factor) for factor in factors}) == 1 and not method.network.terms
    if not cuts or not is_plain_product or not has_one_network or method.fixed_bonds or resolved.config.frozen:
        raise ValueError(
            f"ranks: {method.name!r} is not a tensor train, a Tucker network or a ring of learned factors with common "
            "owners, so it has no spectra"
        )
    return cuts


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
