"""The best pair of a smaller rank, against a dense SVD."""

import pytest
import torch

from metalora.tensornet.truncation.truncated_svd import truncated_svd


@pytest.mark.parametrize(
    "k, inputs, out, rank", [(6, (7,), 8, 3), (6, (3, 2, 2), 4, 1), (5, (2,), 9, 1), (9, (4,), 4, 3)]
)
def test_a_cut_pair_is_the_truncated_svd(k, inputs, out, rank):
    left, right = torch.randn(k, *inputs).double(), torch.randn(k, out).double()
    u, s, vh = torch.linalg.svd(left.flatten(1).mT @ right, full_matrices=False)
    cut = truncated_svd(left, right, rank)
    assert cut.left.shape == (rank, *inputs) and cut.right.shape == (rank, out)
    torch.testing.assert_close(cut.left.flatten(1).mT @ cut.right, u[:, :rank] * s[:rank] @ vh[:rank])
    assert (cut.norm, cut.discarded) == pytest.approx((float(s.norm()), float(s[rank:].norm())))


def test_a_pair_below_the_rank_keeps_its_bits():
    left, right = torch.randn(2, 3, 3, 3), torch.randn(2, 5)
    cut = truncated_svd(left, right, 2)
    assert cut.left is left and cut.right is right and cut.discarded == 0
    assert cut.norm == pytest.approx(float((left.flatten(1).mT @ right).norm()), rel=1e-5)


def test_a_pair_wider_than_its_sides_and_a_zero_pair():
    left, right = torch.randn(9, 3).double(), torch.randn(9, 4).double()
    cut = truncated_svd(left, right, 5)  # Delta W has rank 3 at most
    torch.testing.assert_close(cut.left.mT @ cut.right, left.mT @ right)
    assert len(cut.left) == len(cut.right) == 3 and cut.discarded == 0
    zero = truncated_svd(left, right * 0, 2)
    assert zero.norm == zero.discarded == 0 and not (zero.left.mT @ zero.right).any()
