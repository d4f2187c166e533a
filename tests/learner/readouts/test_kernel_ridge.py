"""The default readout against scikit-learn, refits and finite differences."""

import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge

from metalora.learner.readouts import FittedReadout, Targets, make_readout
from metalora.learner.readouts.discriminant import class_discriminant, label_discriminants
from metalora.learner.readouts.kernel import choose_ridge, fit_ridge, linear_and_rbf


def task(items=24, width=7, classes=3, spread=1.0, seed=0):
    """Gaussian classes in float64: features (n, d) and codes (n,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)).double()
    codes = torch.arange(items) % classes
    return centres[codes] + spread * torch.randn(items, width, generator=generator).double(), codes


def centred_classes(codes, count=3):
    return Targets.classes(codes, count).to(torch.ones(1, dtype=torch.float64)).centred()


@pytest.mark.parametrize("ridge", (1e-3, 0.1, 3.0))
def test_coefficients_and_scores_equal_scikit_learn(ridge):
    (support, codes), (queries, _) = task(), task(10, seed=1)
    targets = centred_classes(codes)
    fit = fit_ridge(linear_and_rbf(support, support), targets, torch.tensor(ridge).double())
    oracle = SklearnKernelRidge(alpha=float(torch.tensor(ridge)), kernel="precomputed")
    oracle.fit(linear_and_rbf(support, support).numpy(), targets.numpy())
    expected = torch.from_numpy(oracle.predict(linear_and_rbf(queries, support).numpy()))
    torch.testing.assert_close(linear_and_rbf(queries, support) @ fit.coefficients, expected)


def test_leave_one_out_scores_equal_refits_without_the_item():
    support, codes = task()
    kernel, targets = linear_and_rbf(support, support), centred_classes(codes)
    fit = fit_ridge(kernel, targets, torch.tensor(0.1).double())
    chosen = choose_ridge(kernel, targets, (0.1,))
    for item in range(len(codes)):
        others = torch.arange(len(codes)) != item
        oracle = SklearnKernelRidge(alpha=float(fit.ridge), kernel="precomputed")
        oracle.fit(kernel[others][:, others].numpy(), targets[others].numpy())
        expected = torch.from_numpy(oracle.predict(kernel[item : item + 1, others].numpy()))[0]
        torch.testing.assert_close(fit.leave_one_out[item], expected)
        torch.testing.assert_close(chosen.leave_one_out[item], expected)


@pytest.mark.parametrize("balanced", (False, True))
def test_leave_one_out_logits_of_the_discriminant_equal_refits(balanced):
    scores, codes = task(20, width=4)
    codes = codes.clone()
    codes[0] = 1  # unequal classes
    one_hot = Targets.classes(codes, 3).matrix.double()
    fit = class_discriminant(scores, one_hot, balanced)
    for item in range(20):
        others = torch.arange(20) != item
        refit = class_discriminant(scores[others], one_hot[others], balanced)
        torch.testing.assert_close(fit.leave_one_out[item], scores[item] @ refit.slope + refit.offset)


@pytest.mark.parametrize("balanced", (False, True))
def test_leave_one_out_logits_of_labels_equal_refits(balanced):
    scores, _ = task(16, width=3)
    labels = (torch.arange(16)[:, None] % torch.tensor([2, 3, 5]) == 0).double()
    fit = label_discriminants(scores, labels, balanced)
    for item in range(16):
        others = torch.arange(16) != item
        refit = label_discriminants(scores[others], labels[others], balanced)
        torch.testing.assert_close(fit.leave_one_out[item], scores[item] @ refit.slope + refit.offset)


@pytest.mark.parametrize("training", (True, False))
def test_a_stored_readout_gives_the_same_logits(training):
    (support, codes), (queries, _) = task(), task(10, seed=1)
    fitted = (
        make_readout("kernel-ridge").train(training).fit(support.float(), Targets.classes(codes, 3), frozen_width=3)
    )
    same = FittedReadout.from_tensors(fitted.tensors(), fitted.settings())
    torch.testing.assert_close(same.logits(queries), fitted.logits(queries), rtol=0, atol=0)
    torch.testing.assert_close(same.novelty(queries), fitted.novelty(queries), rtol=0, atol=0)
    assert same.settings() == fitted.settings()
