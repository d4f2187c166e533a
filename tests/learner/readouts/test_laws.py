"""What holds for every readout: invariances, storage, robustness, gradients, errors."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metalora.learner.readouts import READOUTS, FittedReadout, Targets, make_readout
from support.readouts import gaussian_task

NAMES = sorted(READOUTS)
MODES = (True, False)


def fit(name, support, codes, classes=3, training=False, balanced=False, frozen_width=0):
    readout = make_readout(name, balanced=balanced).train(training)
    return readout.fit(support, Targets.classes(codes, classes), frozen_width=frozen_width)


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_items_classes_and_features_does_not_matter(name, training, seed):
    (support, codes), (queries, _) = gaussian_task(12, width=5, seed=seed), gaussian_task(4, width=5, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    items, features, classes = (torch.randperm(count, generator=generator) for count in (12, 5, 3))
    plain = fit(name, support, codes, training=training)
    shuffled = fit(name, support[items][:, features], classes[codes][items], training=training)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}  # of a temperature that is rounded to six digits, and of L-BFGS
    torch.testing.assert_close(shuffled.logits(queries[:, features])[:, classes], plain.logits(queries), **tolerance)
    torch.testing.assert_close(shuffled.leave_one_out[:, classes], plain.leave_one_out[items], **tolerance)
    torch.testing.assert_close(shuffled.novelty(queries[:, features]), plain.novelty(queries))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000), shift=st.floats(-100, 100), dead=st.booleans())
def test_a_constant_added_to_the_features_and_dead_features_change_nothing(name, seed, shift, dead):
    (support, codes), (queries, _) = gaussian_task(12, width=5, seed=seed), gaussian_task(4, width=5, seed=seed + 1)
    plain = fit(name, support, codes).logits(queries)
    if dead:
        support, queries = torch.cat([support, torch.ones(12, 2)], 1), torch.cat([queries, torch.randn(4, 2)], 1)
    moved = fit(name, support + shift, codes).logits(queries + shift)
    torch.testing.assert_close(moved, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_stored_readout_gives_the_same_logits(name, training):
    (support, codes), (queries, _) = gaussian_task(), gaussian_task(10, seed=1)
    fitted = fit(name, support.float(), codes, training=training, frozen_width=3)
    stored_settings = json.loads(json.dumps(fitted.settings()))
    same = FittedReadout.from_tensors(fitted.tensors(), stored_settings)
    torch.testing.assert_close(same.logits(queries), fitted.logits(queries), rtol=0, atol=0)
    torch.testing.assert_close(same.novelty(queries), fitted.novelty(queries), rtol=0, atol=0)
    torch.testing.assert_close(same.leave_one_out, fitted.leave_one_out, rtol=0, atol=0)
    assert same.settings() == fitted.settings()
    assert not any(tensor.requires_grad for tensor in fitted.tensors().values())


@pytest.mark.parametrize("kind", ("numbers", "multilabel"))
def test_numbers_and_labels_are_stored(kind):
    support, _ = gaussian_task()
    targets = {
        "numbers": Targets.numbers(torch.randn(24, 2)),
        "multilabel": Targets.multilabel(torch.randn(24, 2) > 0),
    }[kind]
    fitted = make_readout("kernel-ridge").eval().fit(support.float(), targets)
    same = FittedReadout.from_tensors(fitted.tensors(), fitted.settings())
    torch.testing.assert_close(same.logits(support), fitted.logits(support), rtol=0, atol=0)
    torch.testing.assert_close(same.targets.matrix, fitted.targets.matrix)


def awkward(case):
    """A support set that is hard to compute with, and its codes."""
    support, codes = gaussian_task(12, width=6)
    support = support.float()
    scales = torch.tensor([1e6, 1e-6, 1.0, 1e3, 1e-3, 1.0])
    return {
        "constant features": lambda: (torch.cat([support, torch.full((12, 3), 7.3)], 1), codes),
        "only constant features": lambda: (torch.full((12, 3), 0.1), codes),
        "fewer items than features": lambda: (torch.randn(6, 50), torch.arange(6) % 3),
        "classes of one item": lambda: (support[:4], torch.tensor([0, 1, 2, 2])),
        "each item its own class": lambda: (support[:3], torch.arange(3)),
        "two items": lambda: (support[:2], torch.arange(2)),
        "duplicates": lambda: (support[:3].repeat(4, 1), codes),
        "duplicates of two classes": lambda: (support[:1].repeat(12, 1), codes),
        "equal items in each class": lambda: (support[:3][codes], codes),
        "one feature": lambda: (support[:, :1], codes),
        "half precision": lambda: (support.half(), codes),
        "bfloat16": lambda: (support.bfloat16(), codes),
        "double precision": lambda: (support.double(), codes),
        "units of 1e6 and 1e-6": lambda: (support * scales, codes),
        "a large offset": lambda: (support + 1e6, codes),
        "tiny features": lambda: (support * 1e-20, codes),
        "dead channels": lambda: (torch.cat([support, 1e-33 * torch.randn(12, 2)], 1), codes),
        "perfectly separated": lambda: (support + 1e3 * codes[:, None], codes),
    }[case]()


CASES = (
    "constant features",
    "only constant features",
    "fewer items than features",
    "classes of one item",
    "each item its own class",
    "two items",
    "duplicates",
    "duplicates of two classes",
    "equal items in each class",
    "one feature",
    "half precision",
    "bfloat16",
    "double precision",
    "units of 1e6 and 1e-6",
    "a large offset",
    "tiny features",
    "dead channels",
    "perfectly separated",
)


FEW_ITEMS = ("classes of one item", "each item its own class", "two items", "duplicates of two classes")


@pytest.mark.parametrize(("balanced", "case"), [(False, case) for case in CASES] + [(True, case) for case in FEW_ITEMS])
@pytest.mark.parametrize("name", NAMES)
def test_awkward_support_sets_give_finite_results(name, balanced, case):
    support, codes = awkward(case)
    classes = int(codes.max()) + 1
    folds = {"folds": 5} if name == "kernel-ridge" and balanced else {}
    for training in MODES:
        support = support.detach().requires_grad_(training)
        readout = make_readout(name, balanced=balanced, **folds).train(training)
        fitted = readout.fit(support, Targets.classes(codes, classes), frozen_width=support.shape[1] // 2)
        queries = torch.cat([support.detach(), -support.detach()])
        logits = fitted.logits(queries)
        assert logits.shape == (len(queries), classes) and logits.isfinite().all()
        assert fitted.leave_one_out.shape == (len(codes), classes) and fitted.leave_one_out.isfinite().all()
        novelty = fitted.novelty(queries)
        assert ((novelty >= 0) & (novelty <= 1)).all()
        if training:
            readout.loss(fitted.logits(queries), codes.repeat(2)).backward()
            assert support.grad.isfinite().all()
            assert all(parameter.grad.isfinite().all() for parameter in readout.parameters())


@pytest.mark.parametrize("kind", ("numbers", "multilabel"))
@pytest.mark.parametrize("case", CASES)
def test_awkward_support_sets_of_numbers_and_labels_give_finite_results(kind, case):
    support, codes = awkward(case)
    for column in (codes, torch.ones_like(codes)):
        targets = (
            Targets.numbers(column.float()) if kind == "numbers" else Targets.multilabel((column == 1).float()[:, None])
        )
        for training in MODES:
            support = support.detach().requires_grad_(training)
            fitted = make_readout("kernel-ridge", folds=2).train(training).fit(support, targets)
            logits = fitted.logits(support)
            assert logits.isfinite().all() and fitted.leave_one_out.isfinite().all()
            if training:
                logits.square().sum().backward()
                assert support.grad.isfinite().all()


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_changes_nothing(name, training):
    (support, codes), (queries, _) = gaussian_task(), gaussian_task(10, seed=1)
    plain = fit(name, support.float(), codes, training=training)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = fit(name, support.float(), codes, training=training)
        logits, novelty = mixed.logits(queries), mixed.novelty(queries)
    torch.testing.assert_close(logits, plain.logits(queries))
    torch.testing.assert_close(novelty, plain.novelty(queries))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    (support, codes), (queries, truth) = gaussian_task(), gaussian_task(10, seed=1)
    readout = make_readout(name)
    readout.loss(fitted_logits(readout, support.float(), codes, queries), truth).backward()
    first_layer = ("weights.hidden.weight", "weights.hidden.bias")  # the last layer is zero at the start
    for parameter_name, parameter in readout.named_parameters():
        assert parameter_name in first_layer or parameter.grad.abs().max() > 0, parameter_name


def fitted_logits(readout, support, codes, queries):
    return readout.fit(support, Targets.classes(codes, 3)).logits(queries)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "kernel-ridge"])
def test_training_equals_finite_differences(name):
    support, codes = gaussian_task(6, width=3)
    queries, _ = gaussian_task(2, width=3, seed=1)
    for width in (3, 8):  # fewer and more features than items
        wide = torch.cat([support, torch.randn(6, 8).double()], 1)[:, :width].requires_grad_()
        wide_queries = torch.cat([queries, torch.randn(2, 8).double()], 1)[:, :width].requires_grad_()
        readout = make_readout(name).double()
        assert torch.autograd.gradcheck(
            lambda x, q, r=readout: fitted_logits(r, x, codes, q), (wide, wide_queries), fast_mode=True
        )


@pytest.mark.parametrize("name", NAMES)
def test_balanced_logits_favour_a_rare_class_more(name):
    support, _ = gaussian_task(40, width=5, classes=2)
    codes = torch.tensor([0, 1] + [0] * 9 + [1] + [0] * 28)
    logits = fit(name, support, codes, 2).logits(support)
    balanced = fit(name, support, codes, 2, balanced=True).logits(support)
    assert balanced.softmax(1)[:, 1].mean() > logits.softmax(1)[:, 1].mean()


@pytest.mark.parametrize("name", NAMES)
def test_novelty_is_low_for_the_support_set_and_one_far_away(name):
    support, codes = gaussian_task(30)
    fitted = fit(name, support, codes)
    assert fitted.novelty(support).max() == 0
    assert fitted.novelty(support + 50).min() == 1


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, 0], "must have shape"),
        (lambda x: x[:5], "5 examples but 12 targets"),
        (lambda x: x.masked_fill(torch.arange(12)[:, None] == 3, float("nan")), r"1 of 12 rows.*\(first: row 3\)"),
        (lambda x: x.masked_fill(torch.arange(12)[:, None] > 9, float("inf")), "2 of 12 rows"),
        (lambda x: x[:, :0], "must have shape"),
    ],
)
def test_a_support_set_that_does_not_fit_is_refused(change, message, training):
    support, codes = gaussian_task(12)
    with pytest.raises(ValueError, match=message):
        fit("kernel-ridge", change(support), codes, training=training)


def test_other_mistakes_are_named():
    support, codes = gaussian_task(12)
    fitted = fit("kernel-ridge", support, codes)
    with pytest.raises(ValueError, match=r"queries must have shape \(m, 7\)"):
        fitted.logits(support[:, :5])
    with pytest.raises(ValueError, match="queries: 12 of 12 rows have NaN"):
        fitted.logits(support * float("nan"))
    with pytest.raises(ValueError, match="frozen_width must be from 0 to 7"):
        fit("kernel-ridge", support, codes, frozen_width=8)
    with pytest.raises(ValueError, match="readout 'lda' takes classes, not numbers"):
        make_readout("lda").fit(support, Targets.numbers(codes.float()))
    with pytest.raises(ValueError, match="did you mean 'kernel-ridge'"):
        make_readout("kernel_ridge")
    with pytest.raises(ValueError, match="unknown kind of targets 'class'; did you mean 'classes'"):
        make_readout("lda").loss(support, codes, "class")
    with pytest.raises(ValueError, match="no tensor 'support'"):
        FittedReadout.from_tensors({k: v for k, v in fitted.tensors().items() if k != "support"}, fitted.settings())
    with pytest.raises(ValueError, match="did you mean 'kernel'"):
        FittedReadout.from_tensors(fitted.tensors(), fitted.settings() | {"rule": "kernels"})
