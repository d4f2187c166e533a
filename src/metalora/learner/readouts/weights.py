"""Weights of the features of a task, from the share of each feature that the targets explain."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from metalora.learner.readouts.standardise import (
    Centred,
    Scaling,
    explained_share,
    standardisation,
    target_basis,
)
from metalora.learner.readouts.targets import Targets

SMALLEST_GAIN = 1e-3
NOISE_SHARES = 2.0  # g does not tell features apart whose share is below so many times that of noise


def share_weights(share: Tensor, items: int, rank: int) -> Tensor:
    """Return the weights w_j = sqrt(max(s_j - rank / (n - 1), 1e-3)); noise alone has the share rank / (n - 1).

    Args:
        share: Shares s of the variance that the targets explain, (..., d).
        items: Number n of examples in the support set.
        rank: Rank of the centred targets: the number of classes minus 1.

    Returns:
        Weights, (..., d), not yet normalised.

    Example:
        >>> share_weights(torch.tensor([0.5, 0.0]), items=5, rank=1)
        tensor([0.5000, 0.0316])
    """
    return (share - rank / max(items - 1, 1)).clamp_min(SMALLEST_GAIN).sqrt()


def normalised(weights: Tensor, is_used: Tensor) -> Tensor:
    """Return weights whose squares have the sum 1; features that are not used get 0.

    Args:
        weights: Positive weights, (..., d).
        is_used: Which features vary in the support set, (..., d).

    Example:
        >>> normalised(torch.tensor([3.0, 4.0, 9.0]), torch.tensor([True, True, False]))
        tensor([0.6000, 0.8000, 0.0000])
    """
    used = torch.where(is_used, weights, torch.zeros_like(weights))
    return used / used.square().sum(-1, keepdim=True).clamp_min(1e-30).sqrt()


def share_scaling(centred: Centred, targets: Targets) -> Scaling:
    """Return the scaling that standardises features and weights them with `share_weights`.

    Args:
        centred: The support set.
        targets: Its targets.

    Example:
        >>> from metalora.learner.readouts.standardise import centre
        >>> support = centre(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> share_scaling(support, Targets.classes(torch.tensor([0, 1]), 2)).factor
        tensor([1.4142, 1.4142])
    """
    basis = target_basis(targets)
    share = explained_share(centred, basis)
    weights = share_weights(share, len(centred.deviations), basis.rank)
    return standardisation(centred).weighted(normalised(weights, centred.is_used))


def even_scaling(centred: Centred) -> Scaling:
    """Return the scaling that standardises features and gives all the same weight, with a sum of squares of 1.

    Args:
        centred: The support set.

    Example:
        >>> from metalora.learner.readouts.standardise import centre
        >>> even_scaling(centre(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))).factor
        tensor([1.4142, 1.4142])
    """
    return standardisation(centred).weighted(normalised(torch.ones_like(centred.mean), centred.is_used))


class ShareWeights(nn.Module):
    """Learned weights of features: the weight of `share_weights` times exp(g(u)).

    g is a network 3 -> 16 -> 1 (81 numbers) that all features share, so that it cannot memorise a task. It starts at
    g = 0. Its input is u_j = [(s_j - 0.3) / 0.25, log(F_j + 0.1) / 2, (rank - 3) / 2], with F_j the F-ratio
    (s_j / rank) / (max(1 - s_j, 1e-3) / (n - 1 - rank)). In u, a share below twice that of noise, 2 rank / (n - 1), is
    replaced by it: otherwise g extrapolates to shares that the support sets of the training do not have, and gives
    features of pure noise the largest weights.

    Example:
        >>> weights = ShareWeights()
        >>> weights(torch.tensor([0.5, 0.0]), items=5, rank=1)
        tensor([0.5000, 0.0316], grad_fn=<MulBackward0>)
        >>> sum(parameter.numel() for parameter in weights.parameters())
        81
    """

    def __init__(self, hidden: int = 16):
        super().__init__()
        self.hidden = nn.Linear(3, hidden)
        self.output = nn.Linear(hidden, 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, share: Tensor, items: int, rank: int) -> Tensor:
        """Return the weights, (..., d), of features with the shares `share`, (..., d); see `share_weights`."""
        inputs = self._inputs(share, items, rank).to(self.output.bias.dtype)
        gain: Tensor = self.output(gelu(self.hidden(inputs)))[..., 0]
        return share_weights(share, items, rank) * gain.exp().to(share.dtype)

    def _inputs(self, share: Tensor, items: int, rank: int) -> Tensor:
        """Return the inputs u of the network, (..., d, 3)."""
        share = share.clamp_min(NOISE_SHARES * rank / max(items - 1, 1)).clamp_max(1)
        unexplained = (1 - share).clamp_min(1e-3) / max(items - 1 - rank, 1)
        f_ratio = share / rank / unexplained
        classes = torch.full_like(share, (rank - 3) / 2)  # (C - 4) / 2 for C classes
        return torch.stack([(share - 0.3) / 0.25, (f_ratio + 0.1).log() / 2, classes], -1)
