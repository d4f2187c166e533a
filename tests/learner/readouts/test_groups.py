"""Groups: variants of one thing are left out together."""

from __future__ import annotations

import pytest
import torch

from metalora.learner.readouts import Targets, make_readout
from metalora.learner.readouts.calibration import expected_calibration_error
from metalora.learner.readouts.discriminant import item_weights
from metalora.learner.readouts.kernel import linear_and_rbf, ridge_path


def example(items: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.arange(items) % 3
    features = torch.randn(items, 5, generator=generator, dtype=torch.float64) + codes[:, None]
    groups = torch.randint(9, (items,), generator=generator)
    return features, codes, groups


def test_a_group_is_left_out_of_the_regression() -> None:
    features, codes, groups = example()
    kernel, targets = linear_and_rbf(features, features), Targets.classes(codes, 3).centred().double()
    found = ridge_path(kernel, targets, (0.1,)).leave_group_out(targets, groups)
    for group in groups.unique():
        others = groups != group
        inverse = torch.linalg.inv(kernel[others][:, others] + 0.1 * torch.eye(int(others.sum())).double())
        expected = kernel[~others][:, others] @ inverse @ targets[others]
        torch.testing.assert_close(found[0, ~others], expected)


def test_a_class_of_one_group_does_not_count() -> None:
    targets = Targets.classes(torch.tensor([0, 0, 1, 1, 1]), 2)
    assert item_weights(targets, False, torch.tensor([4, 4, 4, 5, 5])).tolist() == [0, 0, 1, 1, 1]


def test_items_that_are_groups_of_their_own_change_nothing() -> None:
    features, codes, _ = example()
    readout, targets = make_readout("kernel-ridge").eval(), Targets.classes(codes, 3)
    plain = readout.fit(features, targets, frozen_width=2)
    grouped = readout.fit(features, targets, frozen_width=2, groups=torch.arange(len(codes)).flip(0))
    torch.testing.assert_close(grouped.leave_one_out, plain.leave_one_out)
    torch.testing.assert_close(grouped.logits(features), plain.logits(features))


def test_a_class_that_is_one_group_is_finite() -> None:
    features, codes, _ = example()
    fitted = make_readout("kernel-ridge").eval().fit(features, Targets.classes(codes, 3), groups=codes)
    assert fitted.leave_one_out.isfinite().all() and fitted.logits(features).isfinite().all()


def test_variants_make_the_readout_less_sure() -> None:
    errors: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(3, 60, generator=generator) * 0.35
        things = torch.arange(18).repeat_interleave(5)  # five variants of each of eighteen things
        kind = torch.arange(18) % 3
        of_thing = centres[kind] + torch.randn(18, 60, generator=generator)
        support = of_thing[things] + 0.1 * torch.randn(90, 60, generator=generator)
        codes = torch.arange(300) % 3
        queries = centres[codes] + torch.randn(300, 60, generator=generator)
        for grouped in (False, True):
            fitted = (
                make_readout("kernel-ridge")
                .eval()
                .fit(support, Targets.classes(kind[things], 3), groups=things if grouped else None)
            )
            errors[grouped].append(expected_calibration_error(fitted.logits(queries).softmax(1), codes))
    assert sum(errors[True]) < 0.9 * sum(errors[False])


def test_groups_of_another_length_are_refused() -> None:
    features, codes, groups = example()
    with pytest.raises(ValueError, match="groups must have shape"):
        make_readout("kernel-ridge").fit(features, Targets.classes(codes, 3), groups=groups[:5])
