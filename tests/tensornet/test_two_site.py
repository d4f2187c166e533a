"""Merged and split pairs of cores against the dense tensor, and the SVD in a random range against the exact one."""

import numpy as np
import pytest
import torch

from metalora.tensornet.truncation.matrix_svd import leading_svd
from metalora.tensornet.truncation.two_site import merge_pair, split_pair

TRAINS = {
    "four cores": ((7, 3, 4, 6), (4, 5, 3)),
    "two cores": ((7, 6), (3,)),
    "an outer side that is smaller": ((2, 9, 5), (2, 4)),
    "wider than it needs": ((2, 2, 8), (3, 6)),
}
every_train = pytest.mark.parametrize("sizes, ranks", TRAINS.values(), ids=TRAINS)


def random_cores(sizes, ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outer = (1, *ranks, 1)
    shapes = zip(outer, sizes, outer[1:], strict=False)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def dense(cores):
    whole = cores[0].numpy()
    for core in cores[1:]:
        whole = np.tensordot(whole, core.numpy(), 1)
    return whole[0, ..., 0]


@every_train
def test_a_merged_pair_is_one_core_next_to_an_identity(sizes, ranks):
    before = dense(random_cores(sizes, ranks))
    for bond in range(len(ranks)):
        cores, merged = merge_pair(random_cores(sizes, ranks), bond)
        np.testing.assert_allclose(dense(cores), before, rtol=0, atol=1e-12)
        assert float(cores[merged].norm()) == pytest.approx(np.linalg.norm(before))
        left, _, _, right = cores[bond].shape[0], *sizes[bond : bond + 2], cores[bond + 1].shape[2]
        assert cores[bond].shape[2] == min(left * sizes[bond], sizes[bond + 1] * right)
        for number, core in enumerate(cores):
            columns = core.flatten(0, 1) if number < merged else core.flatten(1).mT
            if number != merged:  # orthonormal towards the merged one
                identity = np.eye(columns.shape[1])
                np.testing.assert_allclose((columns.mT @ columns).numpy(), identity, atol=1e-12)


@every_train
@pytest.mark.parametrize("svd", ("exact", "randomised"))
def test_a_split_pair_is_the_best_truncation_of_the_whole_tensor_on_that_bond(sizes, ranks, svd):
    before = dense(random_cores(sizes, ranks))
    for bond in range(len(ranks)):
        cores, _ = merge_pair(random_cores(sizes, ranks), bond)
        values = np.linalg.svd(before.reshape(int(np.prod(sizes[: bond + 1])), -1), compute_uv=False)
        for rank in range(1, ranks[bond] + 1):
            split, discarded = split_pair(cores, bond, rank, svd=svd)
            assert split[bond].shape[2] == split[bond + 1].shape[0] <= rank
            wanted = np.linalg.norm(values[rank:])
            assert np.linalg.norm(dense(split) - before) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
            # of a random range it is the difference of two norms: the root of a rounding
            assert discarded == pytest.approx(wanted, rel=1e-6, abs=1e-6 * np.linalg.norm(before))


@pytest.mark.parametrize("svd", ("exact", "randomised"))
def test_a_tolerance_chooses_the_rank(svd):
    values = 0.5 ** torch.arange(12, dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.randn(n, 12, dtype=torch.float64)).Q for n in (30, 20))
    matrix = (u * values) @ v.mT
    for tolerance in (0.5, 0.1, 0.01):
        _, s, _, discarded = leading_svd(matrix, 12, tolerance, svd)
        tails = [float(values[rank:].norm() / values.norm()) for rank in range(13)]
        assert len(s) == next(rank for rank, tail in enumerate(tails) if tail <= tolerance)
        assert discarded <= tolerance * float(values.norm())
    assert len(leading_svd(matrix, 3, 0.01, svd)[1]) == 3  # the largest rank counts first


@pytest.mark.parametrize("decay, tolerance", [(0.5, 1e-10), (0.8, 1e-4)])
def test_a_random_range_equals_the_exact_values_if_they_fall(decay, tolerance):
    values = decay ** torch.arange(60, dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.randn(n, 60, dtype=torch.float64)).Q for n in (200, 90))
    matrix = (u * values) @ v.mT
    state = torch.get_rng_state()
    first, second = (leading_svd(matrix, 10, svd="randomised") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)  # the numbers of a run are not touched
    for ours, again in zip(first[:3], second[:3], strict=True):
        assert torch.equal(ours, again)
    np.testing.assert_allclose(first[1].numpy(), values[:10].numpy(), rtol=tolerance)
    best = (u[:, :10] * values[:10]) @ v[:, :10].mT
    assert float(((first[0] * first[1]) @ first[2] - best).norm()) <= 10 * tolerance
    assert first[3] == pytest.approx(float(values[10:].norm()), rel=max(tolerance, 1e-6))
