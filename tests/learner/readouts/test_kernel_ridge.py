"""The default readout against scikit-learn, refits and finite differences."""

import math

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge
from sklearn.linear_model import Ridge
from torch.nn.functional import cross_entropy

from metalora.learner.readouts import Targets, make_readout
from metalora.learner.readouts.calibration import expected_calibration_error
from metalora.learner.readouts.kernel import FeatureKernel, fit_ridge, linear_and_rbf, ridge_path
from metalora.learner.readouts.kernel_fit import RIDGES_OF_CLASSES, RIDGES_OF_NUMBERS, fit_kernel_rule, held_out_parts
from metalora.learner.readouts.kernel_ridge import KernelRidge
from metalora.learner.readouts.weights import ShareWeights
from support.readouts import gaussian_task, image_like_task


def centred_classes(codes, count=3):
    return Targets.classes(codes, count).to(torch.ones(1, dtype=torch.float64)).centred()


def test_the_kernel_by_hand():
    left, right = [0.5, -1.0], [2.0, 0.25]
    product = sum(a * b for a, b in zip(left, right, strict=True))
    distance = sum((a - b) ** 2 for a, b in zip(left, right, strict=True))
    value = linear_and_rbf(torch.tensor([left]), torch.tensor([right])).item()
    assert value == pytest.approx(product / 2 + math.exp(-distance / 4) / 2)


@pytest.mark.parametrize("ridge", (1e-3, 0.1, 3.0))
def test_coefficients_and_scores_equal_scikit_learn(ridge):
    (support, codes), (queries, _) = gaussian_task(), gaussian_task(10, seed=1)
    targets = centred_classes(codes)
    fit = fit_ridge(linear_and_rbf(support, support), targets, torch.tensor(ridge).double())
    oracle = SklearnKernelRidge(alpha=float(fit.ridge), kernel="precomputed")
    oracle.fit(linear_and_rbf(support, support).numpy(), targets.numpy())
    expected = torch.from_numpy(oracle.predict(linear_and_rbf(queries, support).numpy()))
    torch.testing.assert_close(linear_and_rbf(queries, support) @ fit.coefficients, expected)


def test_leave_one_out_scores_equal_refits_without_the_item():
    support, codes = gaussian_task()
    kernel, targets = linear_and_rbf(support, support), centred_classes(codes)
    fit = fit_ridge(kernel, targets, torch.tensor(0.1).double())
    chosen = ridge_path(kernel, targets, (float(fit.ridge),))
    for item in range(len(codes)):
        others = torch.arange(len(codes)) != item
        oracle = SklearnKernelRidge(alpha=float(fit.ridge), kernel="precomputed")
        oracle.fit(kernel[others][:, others].numpy(), targets[others].numpy())
        expected = torch.from_numpy(oracle.predict(kernel[item : item + 1, others].numpy()))[0]
        torch.testing.assert_close(fit.leave_one_out[item], expected)
        torch.testing.assert_close(chosen.leave_one_out[0, item], expected)


def test_the_ridge_of_numbers_has_the_smallest_leave_one_out_error():
    support, _ = gaussian_task(60, spread=2.0)
    support = support / 8
    kernel = linear_and_rbf(support, support)
    targets = Targets.numbers(support[:, :1] + 0.15 * torch.randn(len(support), 1).double()).to(support)
    fits = [fit_ridge(kernel, targets.centred(), torch.tensor(ridge).double()) for ridge in RIDGES_OF_NUMBERS]
    errors = [float((fit.leave_one_out - targets.centred()).square().sum()) for fit in fits]
    chosen = fit_kernel_rule(kernel, FeatureKernel(), targets, False)
    assert chosen.ridge == pytest.approx(RIDGES_OF_NUMBERS[int(np.argmin(errors))])
    assert 0 < int(np.argmin(errors)) < len(errors) - 1  # neither end of the grid


def test_the_ridge_of_classes_is_a_tenth_unless_another_one_is_clearly_better():
    support, codes = gaussian_task(60, spread=0.5)
    targets = Targets.classes(codes, int(codes.max()) + 1).to(support)
    kernel = linear_and_rbf(support / 2, support / 2)
    chosen = fit_kernel_rule(kernel, FeatureKernel(), targets, False)
    assert chosen.ridge == 0.1
    for ridge in RIDGES_OF_CLASSES[1:]:
        gain = (
            fit_kernel_rule(kernel, FeatureKernel(), targets, False, ridges=(ridge,)).likelihoods - chosen.likelihoods
        )
        assert gain.mean() <= gain.std(correction=0) / len(gain) ** 0.5
    lines = torch.arange(64).double()[:, None] / 5  # stripes of two classes: only a small ridge can follow them
    stripes = Targets.classes((torch.arange(64) // 8) % 2, 2).to(lines)
    assert fit_kernel_rule(linear_and_rbf(lines, lines), FeatureKernel(), stripes, False).ridge < 0.1


def test_features_that_vary_by_rounding_alone_count_for_nothing():
    support, codes = gaussian_task()
    support = support.float()
    noise = -15.966458 + 3e-6 * torch.randn(len(support), 300)
    assert (noise.amax(0) > noise.amin(0)).all()
    targets, readout = Targets.classes(codes, int(codes.max()) + 1), KernelRidge().eval()
    plain, noisy = readout.fit(support, targets), readout.fit(torch.cat([support, noise], 1), targets)
    assert (noisy.scaling.factor[support.shape[1] :] == 0).all()
    torch.testing.assert_close(noisy.leave_one_out, plain.leave_one_out)


@pytest.mark.parametrize("kind", ("classes", "numbers", "multilabel"))
def test_training_equals_finite_differences(kind):
    support, codes = gaussian_task(9, width=4)
    queries, _ = gaussian_task(3, width=4, seed=1)
    targets = {
        "classes": Targets.classes(codes, 3),
        "numbers": Targets.numbers(torch.randn(9, 2).double()),
        "multilabel": Targets.multilabel((torch.arange(18).view(9, 2) % 4 < 2).double()),
    }[kind]
    readout = KernelRidge().double()
    for parameter in readout.weights.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def outputs(support, queries, *parameters):
        named = dict(zip(dict(readout.named_parameters()), parameters, strict=True))
        fitted = torch.func.functional_call(readout, named, (support, targets))
        return fitted.logits(queries), fitted.leave_one_out

    readout.forward = readout.fit  # functional_call calls forward
    inputs = [support.requires_grad_(), queries.requires_grad_(), *readout.parameters()]
    assert torch.autograd.gradcheck(outputs, inputs, fast_mode=True)


def test_the_readout_has_83_parameters_and_starts_with_the_plain_weights():
    readout = KernelRidge()
    assert sum(parameter.numel() for parameter in readout.parameters()) == 81 + 2
    assert readout.log_ridge.exp().item() == pytest.approx(0.1)
    share = torch.tensor([0.0, 0.2, 0.9])
    expected = [math.sqrt(max(value - 2 / 9, 1e-3)) for value in share.tolist()]
    np.testing.assert_allclose(ShareWeights()(share, items=10, rank=2).tolist(), expected, rtol=1e-6)


def test_the_discriminant_undoes_the_masking_of_a_class_between_two_others():
    codes = torch.arange(60) % 3
    support = codes[:, None].double() + 0.05 * torch.randn(60, 1).double()
    features = support.expand(60, 5).contiguous()
    plain = Ridge().fit(features.numpy(), centred_classes(codes).numpy()).predict(features.numpy())
    assert (plain.argmax(1) == codes.numpy())[codes == 1].mean() < 0.8
    fitted = KernelRidge().eval().fit(features, Targets.classes(codes, 3))
    assert (fitted.logits(features).argmax(1) == codes).all()


def task_with_frozen_features(informative):
    support, codes, queries, truth = image_like_task(width=60, classes=3)
    noise, query_noise = torch.randn(60, 200), torch.randn(600, 200)
    if informative == "frozen":
        return torch.cat([support, noise], 1), torch.cat([queries, query_noise], 1), codes, truth, 60
    return torch.cat([noise, support], 1), torch.cat([query_noise, queries], 1), codes, truth, 200


@pytest.mark.parametrize("folds", (0, 10))
def test_the_kernel_in_use_is_at_least_as_likely_as_that_of_all_features(folds):
    support, queries, codes, truth, frozen_width = task_with_frozen_features("frozen")
    targets = Targets.classes(codes, 3)
    chosen = KernelRidge(folds=folds).eval().fit(support, targets, frozen_width=frozen_width)
    all_alone = KernelRidge(folds=folds).eval().fit(support, targets)

    def likelihoods(fitted):
        return -cross_entropy(fitted.leave_one_out, codes, reduction="none")

    assert (likelihoods(all_alone) - likelihoods(chosen)).mean() < 1e-6  # another one is taken only if it is better
    right = [(fitted.logits(queries).argmax(1) == truth).double().mean() for fitted in (chosen, all_alone)]
    assert right[0] >= right[1]  # for new items, too


@pytest.mark.parametrize("informative", ("frozen", "adapted"))
def test_folds_choose_the_kernel_whose_features_inform(informative):
    support, queries, codes, truth, frozen_width = task_with_frozen_features(informative)
    targets = Targets.classes(codes, 3)
    chosen = KernelRidge(folds=10).eval().fit(support, targets, frozen_width=frozen_width)
    assert (chosen.scaling.columns is not None) == (informative == "frozen")


@pytest.mark.parametrize("folds", (0, 10))
def test_a_small_support_set_of_many_features_is_calibrated(folds):
    errors = []
    for seed in range(4):
        support, codes, queries, truth = image_like_task(30, width=900, classes=3, seed=seed)
        fitted = KernelRidge(folds=folds).eval().fit(support, Targets.classes(codes, 3))
        errors.append(expected_calibration_error(fitted.logits(queries).softmax(1), truth))
    assert np.mean(errors) < 0.15


def test_held_out_logits_of_folds_equal_fits_without_the_fold():
    support, codes = gaussian_task(20, width=6)
    fitted = KernelRidge(folds=2).eval().fit(support, Targets.classes(codes, 3))
    rank = torch.stack([(codes[:item] == codes[item]).sum() for item in range(20)])
    for fold in range(2):
        held_out = rank % 2 == fold
        refit = KernelRidge().eval().fit(support[~held_out], Targets.classes(codes[~held_out], 3))
        logits = refit.logits(support[held_out])
        ratio = logits / fitted.leave_one_out[held_out]  # both have a temperature
        torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)


def test_one_fold_is_refused():
    with pytest.raises(ValueError, match="folds must be 0 .* or at least 2, not 1"):
        KernelRidge(folds=1)
    with pytest.raises(ValueError, match="unknown setting of readout 'lda' 'fold'"):
        make_readout("lda", fold=3)


def test_the_mean_of_both_kernels_is_stored_and_computed_as_such():
    support, codes = gaussian_task(30, width=8, spread=2.0)
    readout = KernelRidge().eval()
    for seed in range(40):
        support, codes = gaussian_task(30, width=8, spread=2.0, seed=seed)
        fitted = readout.fit(support, Targets.classes(codes, 3), frozen_width=4)
        if fitted.settings()["rule_settings"]["frozen_width"]:
            break
    weighted = fitted.support
    frozen = weighted[:, :4] * fitted.rule.frozen_scale
    mean = (linear_and_rbf(weighted, weighted) + linear_and_rbf(frozen, frozen)) / 2
    torch.testing.assert_close(mean @ fitted.rule.coefficients + fitted.rule.offset, fitted.logits(support))
    assert frozen.square().sum(1).mean() == pytest.approx(1, rel=1e-6)  # weights of sum of squares 1, deviations 1


def test_numbers_have_their_own_unit():
    support, _ = gaussian_task(60, width=5)
    values = 1000 * support[:, 0] + 5
    fitted = KernelRidge().eval().fit(support, Targets.numbers(values))
    residual = (fitted.leave_one_out[:, 0] - values).std() / values.std()
    assert residual < 0.35
    scaled = KernelRidge().eval().fit(support, Targets.numbers(values / 1000))
    torch.testing.assert_close(scaled.logits(support) * 1000, fitted.logits(support))


def test_labels_are_predicted_each():
    support, codes = gaussian_task(80, width=6, classes=4, spread=0.3)
    labels = torch.stack([codes % 2 == 0, codes < 2], 1)
    fitted = KernelRidge().eval().fit(support, Targets.multilabel(labels))
    assert ((fitted.logits(support) > 0) == labels).float().mean() > 0.97
    readout = make_readout("kernel-ridge")
    loss = readout.loss(readout.fit(support, Targets.multilabel(labels)).logits(support), labels, "multilabel")
    assert loss < 0.2


def test_parts_do_not_depend_on_the_order_of_items_and_classes_and_keep_groups_together():
    features, codes = gaussian_task(30)
    groups = torch.arange(30) % 15
    order, names = torch.randperm(30), torch.tensor([2, 0, 1])
    for of_items in (None, groups):
        parts = list(held_out_parts(features, Targets.classes(codes, 3), of_items, 4))
        shuffled_groups = None if of_items is None else of_items[order]
        shuffled = held_out_parts(features[order], Targets.classes(names[codes][order], 3), shuffled_groups, 4)
        for part, other in zip(parts, shuffled, strict=True):
            assert torch.equal(part[order], other)
        assert torch.stack(parts).sum(0).eq(1).all()
    for part in parts:
        assert all(part[groups == group].unique().numel() == 1 for group in range(15))
