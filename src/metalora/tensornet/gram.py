"""Contractions of networks without the dense tensor: Gram matrices, projections, norms, distances.

The factors are tensors (n, *bonds), as in `topology`. Two networks of one topology have a number for an inner product,
and small matrices over the bonds when some factors are left out; all algorithms of `truncation` work with these.
"""

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from math import prod, sqrt

import opt_einsum
import torch
from torch import Tensor

from metalora.tensornet.topology import FactorBonds


def bond_axis(bonds: Sequence[str], bond: str) -> int:
    """Return the axis of a bond in a factor (n, *bonds).

    Example:
        >>> bond_axis(["a", "b"], "b")
        2
    """
    return 1 + list(bonds).index(bond)  # axis 0 holds the open modes


def mode_product(tensor: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Contract an axis of a tensor with the first axis of a matrix; the second takes its place.

    The n-mode product of Kolda and Bader (2009), section 2.5, with the transposed matrix.

    Args:
        tensor: (..., old, ...), `old` at `axis`.
        axis: Which axis is contracted.
        matrix: (old, new).

    Returns:
        (..., new, ...), `new` at `axis`.

    Example:
        >>> mode_product(torch.ones(5, 4, 3), 1, torch.ones(4, 2)).shape
        torch.Size([5, 2, 3])
    """
    product: Tensor = torch.tensordot(tensor, matrix, ([axis], [0]))
    return product.movedim(-1, axis)  # tensordot puts the new axis last


def contract(operands: Sequence[tuple[Tensor, Sequence[str]]], output: Sequence[str]) -> Tensor:
    """Contract tensors whose axes have labels; labels that are not in the output are summed.

    Args:
        operands: (tensor, its labels), one label for each axis.
        output: The labels of the result, in order.

    Example:
        >>> a, b = torch.ones(2, 3), torch.ones(3, 4)
        >>> contract([(a, ["row", "bond"]), (b, ["bond", "column"])], ["row", "column"]).shape
        torch.Size([2, 4])
    """
    tensors, labels = zip(*operands, strict=True)
    shapes = tuple(tuple(tensor.shape) for tensor in tensors)
    expression = _planned_expression(tuple(map(tuple, labels)), tuple(output), shapes)
    return expression(*tensors)


@lru_cache(maxsize=512)  # planning takes five times as long as contracting, and a fit repeats the same contractions
def _planned_expression(
    labels: tuple[tuple[str, ...], ...], output: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> Callable[..., Tensor]:
    """The planned contraction of operands with these labels and shapes, as a function of their tensors."""
    # opt_einsum has a symbol for any number of labels; a letter each would end at 52
    distinct = dict.fromkeys(label for operand in labels for label in operand)
    symbols = {label: opt_einsum.get_symbol(number) for number, label in enumerate(distinct)}
    inputs = ["".join(symbols[label] for label in operand) for operand in labels]
    equation = ",".join(inputs) + "->" + "".join(symbols[label] for label in output)
    expression: Callable[..., Tensor] = opt_einsum.contract_expression(equation, *shapes)
    return expression


def open_label(factor: int) -> str:
    """Return the label of a factor's flattened open modes in `contract`.

    Example:
        >>> open_label(2)
        '#2'
    """
    return f"#{factor}"  # "#" is not a letter of a mode's name, so the label never clashes with a bond


def _primed(bonds: Sequence[str]) -> list[str]:
    """The labels of the second network's bonds."""
    return [f"{bond}'" for bond in bonds]


def dense_tensor(factor_bonds: FactorBonds, tensors: Sequence[Tensor]) -> Tensor:
    """Contract all bonds of a network.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n_k, *bonds) each.

    Returns:
        (n_1, n_2, ...), an axis for every factor.

    Example:
        >>> left, right = torch.ones(2, 3), torch.ones(4, 3)
        >>> dense_tensor([["r"], ["r"]], [left, right]).shape
        torch.Size([2, 4])
    """
    operands = [
        (tensor, [open_label(number), *bonds])
        for number, (bonds, tensor) in enumerate(zip(factor_bonds, tensors, strict=True))
    ]
    return contract(operands, [open_label(number) for number in range(len(tensors))])


def environment(
    factor_bonds: FactorBonds, first: Sequence[Tensor], second: Sequence[Tensor], left_out: Collection[int] = ()
) -> Tensor:
    """Inner product of two networks of one topology, with some factors left out of both.

    Args:
        factor_bonds: The bonds of every factor; the two networks may have other sizes of the same bonds.
        first: The factors of one network, (n, *bonds) each.
        second: The factors of the other.
        left_out: Numbers of the factors that are left out.

    Returns:
        (*bonds of the factors left out in `first`, *the same bonds in `second`); () if none is left out.

    Example:
        >>> factors = [torch.ones(2, 3), torch.ones(4, 3)]  # T is 2 x 4, every entry 3
        >>> float(environment([["r"], ["r"]], factors, factors))
        72.0
        >>> environment([["r"], ["r"]], factors, factors, left_out=[0]).shape
        torch.Size([3, 3])
    """
    operands: list[tuple[Tensor, list[str]]] = []
    for number, bonds in enumerate(factor_bonds):
        if number not in left_out:
            # an open axis has the same label in both networks and is summed; the bonds of the second are primed, so
            # that each network contracts its own
            operands.append((first[number], [open_label(number), *bonds]))
            operands.append((second[number], [open_label(number), *_primed(bonds)]))
    open_bonds = [bond for number in left_out for bond in factor_bonds[number]]
    return contract(operands, [*open_bonds, *_primed(open_bonds)])


def project_onto(
    factor_bonds: FactorBonds,
    reference: Sequence[Tensor],
    approximation: Sequence[Tensor],
    *left_out: int,
    summed: Collection[str] = (),
) -> Tensor:
    """Contract a network with all factors but some of another one of the same topology.

    Args:
        factor_bonds: The bonds of every factor.
        reference: The factors of the network that is projected, (n, *bonds) each.
        approximation: The factors onto which it is projected.
        *left_out: Numbers of the factors of `approximation` that are left out.
        summed: Bonds between factors that are left out; the result has no axis for them.

    Returns:
        (n, *bonds in `approximation`) of each factor that is left out, one after another. If the factors that take part
        are orthonormal towards the one that is left out, this is the best value for that factor.

    Example:
        >>> factors = [torch.ones(2, 3), torch.ones(4, 3)]
        >>> project_onto([["r"], ["r"]], factors, factors, 0).shape
        torch.Size([2, 3])
    """
    operands: list[tuple[Tensor, list[str]]] = []
    for number, bonds in enumerate(factor_bonds):
        # all factors of the reference take part, so its bonds are contracted away
        operands.append((reference[number], [open_label(number), *bonds]))
        if number not in left_out:
            operands.append((approximation[number], [open_label(number), *_primed(bonds)]))
    output: list[str] = []
    for number in left_out:
        open_bonds = [bond for bond in factor_bonds[number] if bond not in summed]
        output += [open_label(number), *_primed(open_bonds)]
    return contract(operands, output)  # (n, *primed bonds) of each factor that is left out


def norm(factor_bonds: FactorBonds, tensors: Sequence[Tensor]) -> float:
    """Return the Frobenius norm |T|_F of a network, by Gram matrices.

    Args:
        factor_bonds: The bonds of every factor.
        tensors: The factors, (n, *bonds) each.

    Example:
        >>> norm([["r"], ["r"]], [torch.ones(4, 1), torch.ones(9, 1)])
        6.0
    """
    # rounding can make the square of a network that cancels to zero slightly negative
    return sqrt(max(float(environment(factor_bonds, tensors, tensors)), 0.0))


def distance(factor_bonds: FactorBonds, first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return |T - T'|_F of two networks of one topology.

    |T - T'|^2 = |T|^2 - 2 <T, T'> + |T'|^2, so that a value below about 1e-8 |T| is rounding.

    Args:
        factor_bonds: The bonds of every factor.
        first: The factors of T, (n, *bonds) each.
        second: The factors of T'.

    Example:
        >>> ones, zeros = torch.ones(9, 1), torch.zeros(9, 1)
        >>> distance([["r"], ["r"]], [torch.ones(4, 1), ones], [torch.ones(4, 1), zeros])
        6.0
    """
    inner_product = float(environment(factor_bonds, first, second))
    # three numbers near |T|^2 cancel: the 1e-16 of float64 that is left becomes 1e-8 under the root
    square = norm(factor_bonds, first) ** 2 - 2 * inner_product + norm(factor_bonds, second) ** 2
    return sqrt(max(square, 0.0))


def qr_compress(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor | None]]:
    """Shorten the open axis of every factor to at most the product of its bonds, by a QR decomposition.

    The best approximations of a network lie in the span of the orthonormal columns, so nothing is lost.

    Args:
        tensors: The factors, (n, *bonds) each.

    Returns:
        The short factors (m, *bonds) with m <= prod(bonds), and for each its orthonormal columns Q (n, m) such that the
        factor is Q times the short one; None if the factor is short already.

    Example:
        >>> short_factors, columns = qr_compress([torch.randn(100, 3), torch.randn(2, 3)])
        >>> [tuple(short.shape) for short in short_factors], columns[1]
        ([(3, 3), (2, 3)], None)
    """
    short_factors: list[Tensor] = []
    columns: list[Tensor | None] = []
    for tensor in tensors:
        if len(tensor) > prod(tensor.shape[1:]):
            q, r = torch.linalg.qr(tensor.flatten(1))  # (n, m), (m, m) with m the product of the bonds
            short_factors.append(r.reshape(-1, *tensor.shape[1:]))  # (m, *bonds)
            columns.append(q)
        else:
            short_factors.append(tensor)
            columns.append(None)
    return short_factors, columns


def qr_expand(short_factors: Sequence[Tensor], columns: Sequence[Tensor | None]) -> list[Tensor]:
    """Undo `qr_compress`: (m, *bonds) to (n, *bonds).

    Example:
        >>> factors = [torch.randn(100, 3), torch.randn(2, 3)]
        >>> torch.allclose(qr_expand(*qr_compress(factors))[0], factors[0], atol=1e-5)
        True
    """
    return [
        short if q is None else torch.tensordot(q, short, 1) for short, q in zip(short_factors, columns, strict=True)
    ]


def tail_norms(values: Tensor) -> Tensor:
    """Return the norms of all tails of a vector: entry j is |values[j:]|.

    Args:
        values: (n,), such as the singular values of a bond; |values[r:]| is what rank r discards.

    Returns:
        (n,).

    Example:
        >>> tail_norms(torch.tensor([4.0, 3.0]))
        tensor([5., 3.])
    """
    # summed from the small end, so that a small tail is not lost next to a large head
    return values.flip(0).square().cumsum(0).flip(0).sqrt()
