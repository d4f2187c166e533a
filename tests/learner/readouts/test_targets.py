"""Targets: what is refused, and their centred form."""

import pytest
import torch

from metalora.learner.readouts import Targets

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Targets.classes(torch.tensor([0, 1]), 3), "more classes than examples: 3 classes, 2 examples"),
        (lambda: Targets.classes(torch.tensor([0, 0, 2]), 3), "class 1 of 3 classes has no example"),
        (lambda: Targets.classes(torch.tensor([0, 1, 3]), 3), "must be from 0 to 2, not 0 to 3"),
        (lambda: Targets.classes(torch.tensor([0, 1, -1]), 2), "must be from 0 to 1, not -1 to 1"),
        (lambda: Targets.classes(torch.tensor([0, 0]), 1), "at least 2 classes, not 1"),
        (lambda: Targets.classes(torch.tensor([0.0, 1.0]), 2), "must be integers"),
        (lambda: Targets.numbers(torch.tensor([1.0, NAN])), "1 values are NaN or infinite"),
        (lambda: Targets.numbers(torch.tensor([[INF, NAN]])), "2 values are NaN or infinite"),
        (lambda: Targets.numbers(torch.zeros(2, 2, 2)), "must have shape"),
        (lambda: Targets.multilabel(torch.tensor([[0.5]])), "labels must be 0 or 1"),
        (lambda: Targets.multilabel(torch.tensor([0.0])), "must have shape"),
    ],
)
def test_a_mistake_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_numbers_are_standardised_and_constants_stay_finite():
    centred = Targets.numbers(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).centred()
    torch.testing.assert_close(centred, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
