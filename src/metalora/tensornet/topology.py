"""How factors are joined by bonds: the topology of a network, and the ranks that fit it.

Here and in `gram` and `truncation`, a factor is a tensor (n, *bonds): its open modes flattened to one axis, then one
axis for each of its bonds. `factor_bonds` names the bonds of every factor in the order of its axes, so that a tensor
train of three factors is (("a",), ("a", "b"), ("b",)).
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Literal

from torch import Tensor

FactorBonds = Sequence[Sequence[str]]
Topology = Literal["chain", "tree", "ring", "shared bond"]


def classify_topology(factor_bonds: FactorBonds) -> Topology | None:
    """Name the topology of a network.

    Args:
        factor_bonds: The bonds of every factor.

    Returns:
        "chain" (matrix, tensor train), "tree" (Tucker), "ring", "shared bond" (CP: three or more factors, one bond), or
        None for every other topology, such as a network of two unconnected parts.

    Example:
        >>> classify_topology([["a"], ["a", "b"], ["b"]])
        'chain'
        >>> classify_topology([["a"], ["b"], ["c"], ["a", "b", "c"]])
        'tree'
    """
    factors_of_bond = edges(factor_bonds)
    all_have_one_bond = all(len(bonds) == 1 for bonds in factor_bonds)
    if len(factors_of_bond) == 1 and len(factor_bonds) > 2 and all_have_one_bond:  # of two factors it is a chain
        return "shared bond"
    # from here on every bond has to be an edge of a graph whose nodes are the factors
    if any(len(factors) != 2 for factors in factors_of_bond.values()):
        return None
    if len(connected_components(factor_bonds)) != 1:
        return None
    if len(factors_of_bond) == len(factor_bonds) - 1:  # connected and without a cycle
        return "chain" if max(len(bonds) for bonds in factor_bonds) <= 2 else "tree"
    # a connected graph whose nodes all have two edges is one cycle
    return "ring" if all(len(bonds) == 2 for bonds in factor_bonds) else None


def edges(factor_bonds: FactorBonds) -> dict[str, tuple[int, ...]]:
    """Map every bond to the numbers of the factors that it joins.

    Args:
        factor_bonds: The bonds of every factor.

    Returns:
        Bond -> numbers of factors, the bonds in the order in which they first occur.

    Example:
        >>> edges([["a"], ["a", "b"], ["b"]])
        {'a': (0, 1), 'b': (1, 2)}
    """
    factors_of_bond: dict[str, tuple[int, ...]] = {}
    for number, bonds in enumerate(factor_bonds):
        for bond in bonds:
            factors_of_bond[bond] = (*factors_of_bond.get(bond, ()), number)
    return factors_of_bond


def connected_components(factor_bonds: FactorBonds) -> list[list[int]]:
    """Split a network into its connected parts.

    Args:
        factor_bonds: The bonds of every factor.

    Returns:
        The numbers of the factors of every part, in ascending order.

    Example:
        >>> connected_components([["a"], ["b"], ["a"], ["b"]])
        [[0, 2], [1, 3]]
    """
    components: list[list[int]] = []
    for number, bonds in enumerate(factor_bonds):
        # this factor links all components with which it shares a bond
        joined = [part for part in components if any(set(factor_bonds[j]) & set(bonds) for j in part)]
        separate = [part for part in components if part not in joined]
        merged = sorted([number, *(j for part in joined for j in part)])
        components = [*separate, merged]
    return sorted(components)


def leaf_to_root_edges(factor_bonds: FactorBonds, root: int) -> list[tuple[int, str, int]]:
    """List the edges (child, bond, parent) of a tree in leaf-to-root order.

    Args:
        factor_bonds: The bonds of every factor of a tree.
        root: The number of the factor that is the root.

    Returns:
        One (child, bond, parent) for every factor but the root; each factor is a child after all its own children.

    Example:
        >>> leaf_to_root_edges([["a"], ["a", "b"], ["b"]], root=2)
        [(0, 'a', 1), (1, 'b', 2)]
    """
    root_to_leaf: list[tuple[int, str, int]] = []
    reached = [root]
    for parent in reached:  # `reached` grows while it is read: breadth-first search
        for bond in factor_bonds[parent]:
            for child, bonds in enumerate(factor_bonds):
                if bond in bonds and child not in reached:
                    root_to_leaf.append((child, bond, parent))
                    reached.append(child)
    return root_to_leaf[::-1]  # breadth-first order reversed: every child before its parent


def most_connected_factor(factor_bonds: FactorBonds) -> int:
    """Return the number of the factor with the most bonds (the first of them): the core of a Tucker network.

    Example:
        >>> most_connected_factor([["a"], ["b"], ["a", "b"]])
        2
    """
    return max(range(len(factor_bonds)), key=lambda number: len(factor_bonds[number]))


def bond_sizes(factor_bonds: FactorBonds, tensors: Sequence[Tensor]) -> dict[str, int]:
    """Map every bond to its size.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.

    Example:
        >>> import torch
        >>> bond_sizes([["a"], ["a", "b"], ["b"]], [torch.ones(9, 2), torch.ones(4, 2, 3), torch.ones(9, 3)])
        {'a': 2, 'b': 3}
    """
    sizes: dict[str, int] = {}
    for bonds, tensor in zip(factor_bonds, tensors, strict=True):
        sizes.update(zip(bonds, tensor.shape[1:], strict=True))
    return sizes


def feasible_ranks(factor_bonds: FactorBonds, open_sizes: Sequence[int], ranks: Mapping[str, int]) -> dict[str, int]:
    """Lower ranks to those that the tensor can need.

    The rank of a bond of two factors is at most the product of the other axes of either factor: r <= n * (the product
    of the factor's other ranks). A larger one adds numbers, but no tensor. A bond that more than two factors share (CP)
    has no such limit and stays.

    Args:
        factor_bonds: The bonds of every factor.
        open_sizes: The size n of every factor's flattened open modes.
        ranks: The wanted rank of every bond.

    Returns:
        The largest ranks, none above the wanted one, that keep the inequality at every factor.

    Example:
        >>> feasible_ranks([["a"], ["b"], ["a", "b"]], [9, 2, 1], {"a": 5, "b": 4})
        {'a': 2, 'b': 2}
    """
    factors_of_bond = edges(factor_bonds)
    ranks = dict(ranks)
    changed = True
    while changed:  # a lower rank can lower those next to it; ranks only fall, so this ends
        changed = False
        for bond, factors in factors_of_bond.items():
            if len(factors) != 2:
                continue  # a bond that three factors or more share has no two sides
            for number in factors:
                other_ranks = prod(ranks[name] for name in factor_bonds[number] if name != bond)
                largest = open_sizes[number] * other_ranks
                if ranks[bond] > largest:
                    ranks[bond] = largest
                    changed = True
    return ranks
