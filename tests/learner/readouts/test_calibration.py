"""Temperature, likelihood and calibration error."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn.functional import cross_entropy

from metalora.learner.readouts import READOUTS, Targets, make_readout
from metalora.learner.readouts.calibration import (
    best_temperature,
    expected_calibration_error,
    mean_log_likelihood,
)
from support.readouts import image_like_task


def test_likelihood_of_classes_equals_scikit_learn():
    logits, codes = torch.randn(20, 3).double(), torch.arange(20) % 3
    likelihood = mean_log_likelihood(logits, Targets.classes(codes, 3).to(logits), torch.ones(20).double())
    assert float(likelihood) == pytest.approx(-log_loss(codes.numpy(), logits.softmax(1).numpy()))


def test_likelihood_of_labels_equals_scikit_learn_and_items_of_weight_zero_do_not_count():
    logits, labels = torch.randn(8, 2).double(), (torch.arange(16).view(8, 2) % 3 == 0).double()
    weights = torch.tensor([1.0] * 6 + [0.0] * 2).double()
    likelihood = mean_log_likelihood(logits, Targets.multilabel(labels).to(logits), weights)
    expected = -log_loss(labels[:6].reshape(-1).numpy(), logits[:6].sigmoid().reshape(-1).numpy())
    assert float(likelihood) == pytest.approx(expected)


def test_temperature_is_recovered_from_logits_that_are_three_times_too_large():
    logits = 2 * torch.randn(4000, 3, dtype=torch.float64)
    codes = torch.distributions.Categorical(logits=logits).sample()
    temperature = best_temperature(3 * logits, Targets.classes(codes, 3).to(logits), torch.ones(4000).double())
    assert temperature == pytest.approx(3, rel=0.15)


def test_calibration_error_by_hand():
    probabilities = torch.tensor([[0.9, 0.1]] * 5 + [[0.35, 0.65]] * 5)
    codes = torch.tensor([0, 0, 0, 0, 1] + [1, 1, 0, 0, 0])
    expected = (abs(0.8 - 0.9) * 5 + abs(0.4 - 0.65) * 5) / 10
    assert expected_calibration_error(probabilities, codes) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(torch.eye(2), torch.tensor([0, 1])) == 0


def test_the_default_readout_is_calibrated_on_gaussian_classes():
    errors = []
    for seed in range(4):
        support, codes, queries, truth = image_like_task(seed=seed)
        fitted = make_readout("kernel-ridge").eval().fit(support, Targets.classes(codes, 4))
        errors.append(expected_calibration_error(fitted.logits(queries).softmax(1), truth))
    assert np.mean(errors) < 0.1


def test_a_temperature_beyond_thirty_is_found_if_it_is_allowed():
    logits = 2 * torch.randn(4000, 3, dtype=torch.float64)
    targets = Targets.classes(torch.distributions.Categorical(logits=logits).sample(), 3).to(logits)
    weights = torch.ones(4000).double()
    assert best_temperature(400 * logits, targets, weights) == pytest.approx(30)
    assert best_temperature(400 * logits, targets, weights, largest=3000) == pytest.approx(400, rel=0.15)


def log_losses(fitted, queries, truth):
    """The log loss of a readout, and that with the best temperature in hindsight."""
    logits = fitted.logits(queries).double()
    divided = [float(cross_entropy(logits / 1.1**step, truth)) for step in range(-30, 60)]
    return float(cross_entropy(logits, truth)), min(divided)


# With weights, kept features or scores that had seen the item, the excess was 0.2 to 0.7 in seven of these cases.
@pytest.mark.parametrize("max_bytes", (None, 8000))
@pytest.mark.parametrize("name", sorted(READOUTS))
def test_few_items_of_many_features_are_calibrated(name, max_bytes):
    excess = []
    for seed in range(3):
        support, codes, queries, truth = image_like_task(30, width=2000, classes=3, seed=seed)
        fitted = make_readout(name).eval().fit(support, Targets.classes(codes, 3))
        loss, smallest = log_losses(fitted if max_bytes is None else fitted.compact(max_bytes), queries, truth)
        excess.append(loss - smallest)
    assert np.mean(excess) < 0.1
