"""Small dense tensors as factors, against einsum in numpy."""

import numpy as np
import pytest
import torch

from metalora.tensornet.decomposition import decompose, factorise, fit_columns

TREES = {
    "chain": ("a | a b | b", (7, 4, 6)),
    "chain, its end declared in the middle": ("a b | a | b", (4, 7, 6)),
    "star": ("a | b | c | a b c", (7, 6, 3, 1)),
    "core in front": ("a b c | a | b | c", (1, 7, 6, 3)),
    "core with an axis": ("a | b | a b", (7, 6, 5)),
    "tree": ("a | a b c | b | c d | d", (4, 2, 5, 3, 4)),
    "matrix": ("r | r", (7, 6)),
}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(factor_bonds, factors):
    letters = {
        bond: chr(ord("A") + k) for k, bond in enumerate(dict.fromkeys(b for bonds in factor_bonds for b in bonds))
    }
    axes = [chr(ord("a") + k) + "".join(letters[bond] for bond in bonds) for k, bonds in enumerate(factor_bonds)]
    return np.einsum(",".join(axes) + "->" + "".join(axis[0] for axis in axes), *[f.numpy() for f in factors])


def parsed(spec):
    return tuple(tuple(bonds.split()) for bonds in spec.split("|"))


@pytest.mark.parametrize("name", TREES)
def test_a_tensor_is_a_tree_exactly(name):
    spec, sizes = TREES[name]
    factor_bonds, tensor = parsed(spec), drawn(*sizes)
    np.testing.assert_allclose(dense(factor_bonds, decompose(factor_bonds, tensor)), tensor.numpy(), atol=1e-12)


@pytest.mark.parametrize("name", TREES)
def test_ranks_are_kept_and_the_error_falls_with_them(name):
    spec, sizes = TREES[name]
    factor_bonds, tensor, errors = parsed(spec), drawn(*sizes), []
    for rank in (1, 2, 3, 40):
        bonds = dict.fromkeys((bond for bonds in factor_bonds for bond in bonds), rank)
        factors = factorise(factor_bonds, tensor, bonds)
        assert all(max(factor.shape[1:]) <= rank for factor in factors)
        errors.append(float(np.linalg.norm(dense(factor_bonds, factors) - tensor.numpy()) / tensor.norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-12 and errors[0] > 0.1
    if name == "matrix":
        s = torch.linalg.svdvals(tensor)
        assert errors[:3] == pytest.approx([float(s[rank:].norm() / s.norm()) for rank in (1, 2, 3)])


@pytest.mark.parametrize("sizes", [(9, 8, 7), (9, 8, 2, 3), (9, 8), (9, 1, 8, 1, 4)])
@pytest.mark.parametrize("rank", [1, 3])
def test_columns_are_found_exactly(sizes, rank):
    factor_bonds = (("r",),) * len(sizes)
    tensor = torch.tensor(dense(factor_bonds, [drawn(n, rank, seed=k) for k, n in enumerate(sizes)]))
    factors = fit_columns(tensor, rank)
    assert [tuple(factor.shape) for factor in factors] == [(n, rank) for n in sizes]
    np.testing.assert_allclose(dense(factor_bonds, factors), tensor.numpy(), atol=1e-6 * float(tensor.norm()))
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_a_rank_one_fit_is_the_best_of_many_power_iterations():
    tensor = drawn(6, 5, 4)
    factors = fit_columns(tensor, 1)
    best = np.inf
    for seed in range(20):
        a, b, c = (drawn(n, seed=100 + seed).numpy() for n in tensor.shape)
        for _ in range(200):
            a = np.einsum("abc,b,c->a", tensor.numpy(), b, c)
            a /= np.linalg.norm(a)
            b = np.einsum("abc,a,c->b", tensor.numpy(), a, c)
            b /= np.linalg.norm(b)
            c = np.einsum("abc,a,b->c", tensor.numpy(), a, b)
            size = np.linalg.norm(c)
            c /= size
        best = min(best, float(tensor.norm() ** 2) - size**2)
    error = np.linalg.norm(dense((("r",),) * 3, factors) - tensor.numpy()) ** 2
    assert error <= best * 1.05


def test_a_ring_is_refused():
    with pytest.raises(ValueError, match="not a chain, a tree or one bond shared by all"):
        factorise(parsed("a b | b c | c a"), drawn(3, 3, 3), {"a": 1, "b": 1, "c": 1})
