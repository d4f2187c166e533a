"""Weights of features: what is learned of them does not extrapolate to features of pure noise."""

from __future__ import annotations

import torch

from metalora.learner.readouts.weights import ShareWeights, share_weights


def test_features_of_noise_are_not_told_apart() -> None:
    weights = ShareWeights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.normal_(generator=generator)
    items, rank = 100, 4
    noise = rank / (items - 1)
    share = torch.tensor([0.0, 0.5 * noise, noise, 2 * noise, 4 * noise, 0.9])
    gain = weights(share, items, rank) / share_weights(share, items, rank)
    torch.testing.assert_close(gain[:4], gain[3].expand(4))
    assert len(gain[3:].round(decimals=4).unique()) == 3  # above, every share has a gain of its own


def test_many_classes_of_few_items_stay_finite() -> None:
    share = torch.linspace(0, 1, 11)
    assert ShareWeights()(share, items=20, rank=15).isfinite().all()  # twice the share of noise is above one
