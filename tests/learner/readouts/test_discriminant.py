"""The discriminant of scores against scikit-learn and refits."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from metalora.learner.readouts import Targets
from metalora.learner.readouts.discriminant import class_discriminant, label_discriminants
from support.readouts import gaussian_task


def unequal_task():
    scores, codes = gaussian_task(20, width=4)
    codes[0] = 1
    return scores, codes, Targets.classes(codes, 3).matrix.double()


def test_logits_equal_scikit_learn_but_for_the_scale_of_the_covariance():
    scores, codes, one_hot = unequal_task()
    fit = class_discriminant(scores, one_hot, balanced=True)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1 / 1.1).fit(scores.numpy(), codes.numpy())
    intercept = oracle.intercept_ - np.log(oracle.priors_)
    scale = 1.1 * 20 / (20 - 3)  # ours divides by n - c and adds a tenth of the mean variance
    # a tolerance of the 1e-4 that ours adds to the variance
    np.testing.assert_allclose(fit.slope.mT.numpy() * scale, oracle.coef_, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(fit.offset.numpy() * scale, intercept, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("balanced", (False, True))
def test_leave_one_out_logits_of_classes_equal_refits(balanced):
    scores, _, one_hot = unequal_task()
    fit = class_discriminant(scores, one_hot, balanced)
    for item in range(20):
        others = torch.arange(20) != item
        refit = class_discriminant(scores[others], one_hot[others], balanced)
        torch.testing.assert_close(fit.leave_one_out[item], scores[item] @ refit.slope + refit.offset)


def test_leave_one_out_in_chunks_is_the_same(monkeypatch):
    scores, _, one_hot = unequal_task()
    whole = class_discriminant(scores, one_hot).leave_one_out
    monkeypatch.setattr("metalora.learner.readouts.discriminant.NUMBERS_AT_ONCE", 50)
    torch.testing.assert_close(class_discriminant(scores, one_hot).leave_one_out, whole)


@pytest.mark.parametrize("balanced", (False, True))
def test_leave_one_out_logits_of_labels_equal_refits(balanced):
    scores, _ = gaussian_task(16, width=3)
    labels = (torch.arange(16)[:, None] % torch.tensor([2, 3, 5]) == 0).double()
    fit = label_discriminants(scores, labels, balanced)
    for item in range(16):
        others = torch.arange(16) != item
        refit = label_discriminants(scores[others], labels[others], balanced)
        torch.testing.assert_close(fit.leave_one_out[item], scores[item] @ refit.slope + refit.offset)


def test_a_label_of_all_or_of_none_has_a_constant_logit():
    fit = label_discriminants(torch.randn(6, 2), torch.tensor([[1.0, 0.0]] * 6))
    assert fit.slope.eq(0).all()
    torch.testing.assert_close(fit.offset, torch.tensor([6.5 / 0.5, 0.5 / 6.5]).log())
