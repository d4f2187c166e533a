"""The compact form: its size, and what it costs."""

import pytest
import torch
from safetensors.torch import save
from torch.nn.functional import cross_entropy

from metalora.learner.readouts import READOUTS, FittedReadout, Targets, make_readout
from metalora.learner.readouts.compact import stored_bytes
from metalora.learner.readouts.kernel import pivots
from support.readouts import gaussian_task, image_like_task

MAX_BYTES = 20_000


def accuracy(fitted, queries, truth):
    return float((fitted.logits(queries).argmax(1) == truth).float().mean())


def fitted_to(name="kernel-ridge", seed=0, items=60, width=928, classes=4, **more):
    support, codes, queries, truth = image_like_task(items, width=width, classes=classes, seed=seed)
    return make_readout(name).eval().fit(support, Targets.classes(codes, classes), **more), queries, truth


def test_twenty_kilobytes_cost_at_most_one_point():
    losses = []
    for seed in range(3):
        fitted, queries, truth = fitted_to(seed=seed, items=(60, 100)[seed % 2])
        compact = fitted.compact(MAX_BYTES)
        assert stored_bytes(compact) <= MAX_BYTES < 100_000 < stored_bytes(fitted)
        losses.append(accuracy(fitted, queries, truth) - accuracy(compact, queries, truth))
    assert sum(losses) / len(losses) <= 0.01 and max(losses) <= 0.02


@pytest.mark.parametrize("name", sorted(READOUTS))
def test_every_readout_has_a_compact_form_that_a_file_stores(name):
    fitted, queries, truth = fitted_to(name, width=600)
    compact = fitted.compact(MAX_BYTES)
    assert len(save(compact.tensors())) <= MAX_BYTES
    assert accuracy(compact, queries, truth) >= accuracy(fitted, queries, truth) - 0.02
    same = FittedReadout.from_tensors(compact.tensors(), compact.settings())
    torch.testing.assert_close(same.logits(queries), compact.logits(queries), rtol=0, atol=0)
    # of a projection only the mean of the novelty is close, not that of each query
    assert compact.novelty(queries).mean() == pytest.approx(float(fitted.novelty(queries).mean()), abs=0.2)
    assert compact.novelty(queries + 30).min() == 1
    assert compact.leave_one_out.shape == fitted.leave_one_out.shape


def correlated_task(width=3000, classes=10, seed=0):
    """A support set of 60 and 200 queries: features are mixtures of 30 numbers, which tell the class, and noise."""
    generator = torch.Generator().manual_seed(seed)
    means, mixing = torch.randn(classes, 30, generator=generator), torch.randn(30, width, generator=generator)

    def draw(count):
        codes = torch.arange(count) % classes
        numbers = means[codes] + torch.randn(count, 30, generator=generator)
        return numbers @ mixing + torch.randn(count, width, generator=generator), codes

    return *draw(60), *draw(200)


# with the coefficients of all features the accuracy lost 0.45, 0.72 and 0.31, and the log loss of lda was 7.5
@pytest.mark.parametrize("name, most", [("kernel-ridge", 0.03), ("lda", 0.12), ("logistic", 0.12)])
def test_features_without_room_cost_little_if_the_others_tell_the_same(name, most):
    losses, log_losses = [], []
    for seed in range(3):
        support, codes, queries, truth = correlated_task(seed=seed)
        fitted = make_readout(name).eval().fit(support, Targets.classes(codes, 10))
        compact = fitted.compact(10_000)
        assert len(compact.scaling.mean) < 500
        losses.append(accuracy(fitted, queries, truth) - accuracy(compact, queries, truth))
        log_losses.append(float(cross_entropy(compact.logits(queries), truth)))
    assert sum(losses) / len(losses) <= most and sum(log_losses) / len(log_losses) < 0.6


def test_a_large_support_set_is_reduced_to_representatives():
    fitted, queries, truth = fitted_to(items=500, width=100)
    compact = fitted.compact(MAX_BYTES)
    assert len(compact.support) < 500 and stored_bytes(compact) <= MAX_BYTES
    assert accuracy(compact, queries, truth) >= accuracy(fitted, queries, truth) - 0.03
    assert len(compact.nearest) == 500


def test_a_readout_with_the_mean_of_two_kernels_becomes_one_with_one_kernel():
    for seed in range(40):
        support, codes = gaussian_task(30, width=300, spread=4.0, seed=seed)
        fitted = make_readout("kernel-ridge").eval().fit(support, Targets.classes(codes, 3), frozen_width=150)
        if fitted.rule.frozen_width:
            break
    assert fitted.rule.frozen_width
    compact = fitted.compact(MAX_BYTES)
    assert stored_bytes(compact) <= MAX_BYTES and compact.rule.frozen_width == 0
    assert compact.logits(support).isfinite().all()


@pytest.mark.parametrize("kind", ("numbers", "multilabel"))
def test_numbers_and_labels_have_a_compact_form(kind):
    support, codes, queries, _ = image_like_task(width=600)
    targets = {
        "numbers": Targets.numbers(1000.0 * codes),
        "multilabel": Targets.multilabel(torch.stack([codes > 1, codes == 2], 1)),
    }[kind]
    fitted = make_readout("kernel-ridge").eval().fit(support, targets)
    compact = fitted.compact(MAX_BYTES)
    assert stored_bytes(compact) <= MAX_BYTES
    difference = (compact.logits(queries) - fitted.logits(queries)).std() / fitted.logits(queries).std()
    assert difference < 0.1


def test_units_that_half_precision_cannot_hold_stay_in_single_precision():
    support, codes, queries, truth = image_like_task(width=600)
    unit = torch.logspace(-6, 6, 600)
    fitted = make_readout("kernel-ridge").eval().fit(unit * support, Targets.classes(codes, 4))
    compact = fitted.compact(MAX_BYTES)
    assert "mean" not in compact.halved and stored_bytes(compact) <= MAX_BYTES
    assert accuracy(compact, unit * queries, truth) >= accuracy(fitted, unit * queries, truth) - 0.02


def test_a_small_readout_stays_as_it_is_and_an_impossible_size_is_refused():
    support, codes = gaussian_task(12)
    fitted = make_readout("kernel-ridge").eval().fit(support, Targets.classes(codes, 3))
    assert fitted.compact(MAX_BYTES) is fitted
    with pytest.raises(ValueError, match="has no form of at most 100 bytes"):
        fitted.compact(100)
    compact = fitted_to()[0].compact(MAX_BYTES)
    with pytest.raises(ValueError, match="start from the full one"):
        compact.compact(5000)


def test_pivots_avoid_duplicates():
    support, _ = gaussian_task(10)
    doubled = torch.cat([support, support])
    chosen = pivots(doubled @ doubled.mT + torch.eye(20) * 1e-9, 7)
    assert len({int(item) % 10 for item in chosen}) == 7
