"""Logits of items that neither regression nor discriminant has seen, against refits."""

import pytest
import torch

from metalora.learner.readouts import Targets
from metalora.learner.readouts.discriminant import decision
from metalora.learner.readouts.kernel import linear_and_rbf, ridge_path
from metalora.learner.readouts.left_out import left_out_logits
from support.readouts import gaussian_task

RIDGE = 0.1
ITEMS = 17


def task(kind):
    support, codes = gaussian_task(ITEMS)
    labels = torch.stack([codes > 0, torch.arange(ITEMS) % 4 < 2], 1)
    targets = Targets.classes(codes, 3) if kind == "classes" else Targets.multilabel(labels)
    kernel = linear_and_rbf(support, support)
    inverse = torch.linalg.inv(kernel + RIDGE * torch.eye(ITEMS).double())
    return kernel, inverse, targets.to(support)


@pytest.mark.parametrize("balanced", (False, True))
@pytest.mark.parametrize("groups", (None, torch.arange(ITEMS).flip(0) // 2))
@pytest.mark.parametrize("kind", ("classes", "multilabel"))
def test_logits_equal_refits_of_regression_and_discriminant(kind, groups, balanced):
    kernel, inverse, targets = task(kind)
    found = left_out_logits(inverse, targets, balanced, groups)
    group_of = torch.arange(ITEMS) if groups is None else groups
    for item in range(ITEMS):
        others = group_of != group_of[item]
        of_others = targets.of(others)
        path = ridge_path(kernel[others][:, others], of_others.centred(), (RIDGE,))
        to_logits = decision(path.leave_one_out, of_others, balanced)
        scores = kernel[item, others] @ path.coefficients[0]
        expected = scores @ to_logits.slope[0] + to_logits.offset[0]
        torch.testing.assert_close(found[item], expected, rtol=1e-5, atol=1e-5)


def test_chosen_items_and_chunks_give_the_same(monkeypatch):
    _, inverse, targets = task("classes")
    whole = left_out_logits(inverse, targets, balanced=False)
    chosen = torch.arange(ITEMS) % 3 == 1
    monkeypatch.setattr("metalora.learner.readouts.left_out.NUMBERS_AT_ONCE", 150)
    torch.testing.assert_close(left_out_logits(inverse, targets, False, chosen=chosen), whole[chosen])
