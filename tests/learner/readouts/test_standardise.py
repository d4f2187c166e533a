"""The share of a feature that the targets explain, against the library's own share and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from metalora.adapters.conditioning.features import between_class_share
from metalora.learner.readouts import Targets
from metalora.learner.readouts.standardise import centre, explained_share, standardisation, target_basis
from support.readouts import gaussian_task


def share(support, targets):
    return explained_share(centre(support), target_basis(targets.to(support)))


def test_share_of_classes_equals_the_between_class_share_and_the_f_ratio():
    support, codes = gaussian_task(items=25, classes=4)
    support[:, 2] = 3.0
    found = share(support, Targets.classes(codes, 4))
    torch.testing.assert_close(found, between_class_share(support, codes))
    varying = [0, 1, 3, 4, 5, 6]
    f_ratio = (found / 3) / ((1 - found) / (25 - 4))
    expected, _ = f_classif(support[:, varying].numpy(), codes.numpy())
    np.testing.assert_allclose(f_ratio[varying].numpy(), expected)


@pytest.mark.parametrize("outputs", (1, 3))
def test_share_of_numbers_is_the_r2_of_a_regression_on_them(outputs):
    support, _ = gaussian_task()
    values = torch.randn(24, outputs).double() + support[:, :1]
    found = share(support, Targets.numbers(values))
    fitted = LinearRegression().fit(values.numpy(), support.numpy()).predict(values.numpy())
    np.testing.assert_allclose(found.numpy(), r2_score(support.numpy(), fitted, multioutput="raw_values"))


def test_rank_counts_independent_columns():
    column = torch.randn(9, 1).double()
    assert target_basis(Targets.numbers(torch.cat([column, 2 * column + 1, torch.ones(9, 1).double()], 1))).rank == 1
    assert target_basis(Targets.numbers(torch.ones(4))).rank == 0
    assert target_basis(Targets.classes(torch.arange(9) % 4, 4)).rank == 3


def test_share_can_be_differentiated():
    support, codes = gaussian_task(items=9, width=4)
    support[:, 1] = 2.0
    targets = Targets.classes(codes, 3)
    assert torch.autograd.gradcheck(lambda x: share(x, targets), support[:, [0, 2, 3]].requires_grad_())
    constant = support.clone().requires_grad_()
    share(constant, targets).sum().backward()
    assert constant.grad.isfinite().all()


def test_features_far_smaller_than_the_others_are_not_blown_up_but_small_units_are():
    support = torch.randn(50, 2) * torch.tensor([1.0, 1e-8])
    deviations = standardisation(centre(support))(support).std(0, correction=0)
    torch.testing.assert_close(deviations[0], torch.tensor(1.0))
    assert deviations[1] < 1e-4
    torch.testing.assert_close(
        standardisation(centre(support[:, 1:]))(support[:, 1:]).std(0, correction=0), torch.ones(1)
    )
