"""Factors that depend on a condition: made for all targets together, with the numbers of each target alone."""

import pytest
import torch

from metalora import AdapterConfig, ConditionConfig
from metalora.adapters import value_factors
from metalora.adapters.value_factors import FactorsUnderValues, JointMids
from support.adapters import assert_close, attach_random
from support.conv_net import BODY, SOURCES, conv_net, images
from support.operations import Operations
from support.transformer import WIDTH, small_transformer

GIVEN = ConditionConfig(source="tensor", feature_size=5, hidden=3)


def texts(method="metalora-tr", targets="*query,*up,*down"):
    model = small_transformer()
    torch.manual_seed(2)
    return model, attach_random(model, AdapterConfig(method, 3, targets=targets, condition=GIVEN))


def run(model, adapter, conditions=4):
    """The output, and the gradients of the input, of all factors and of the mapping net."""
    torch.manual_seed(1)
    x = torch.randn(4, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    y = model(x, condition=adapter.condition(torch.randn(conditions, 5, dtype=torch.float64)))
    return [y, *torch.autograd.grad(y.square().sum(), [x, *adapter.parameters()], allow_unused=True)]


@pytest.fixture
def made(monkeypatch):
    """The number of targets of each contraction that has made Mids."""
    counts, make = [], JointMids.__call__

    def recorded(self, values):
        mids = make(self, values)
        counts.append(len(mids))
        return mids

    monkeypatch.setattr(JointMids, "__call__", recorded)
    return counts


@pytest.mark.parametrize("method", ["metalora-tr", "metalora-square", "metalora-cp"])
def test_outputs_and_gradients_are_those_of_each_target_alone(method, made, monkeypatch):
    together = run(*texts(method))
    assert made == ([9] if method == "metalora-tr" else [])  # the Mid of the others is stored as the layers read it
    monkeypatch.setattr(value_factors, "MOST_TOGETHER", 0)
    for value, expected in zip(together, run(*texts(method)), strict=True):
        assert_close(value, expected)


def test_a_target_takes_one_product_for_mid(made):
    model, adapter = texts()
    x, condition = torch.randn(4, 5, WIDTH, dtype=torch.float64), adapter.condition(torch.randn(4, 5).double())
    with torch.no_grad(), Operations() as operations:
        model(x, condition=condition)
    joint, targets = made, 9
    assert joint == [targets] and operations.names.count("bmm") == targets + 1


def test_the_targets_of_a_convolutional_network_are_together_whatever_their_sizes(made):
    model = conv_net()
    config = AdapterConfig("metalora-tr", 2, targets=BODY, condition=ConditionConfig(**SOURCES["stem"], hidden=3))
    attach_random(model, config)
    x = images(3)
    y = model(x)
    assert made == [2]
    for row in range(3):
        assert_close(y[row : row + 1], model(x[row : row + 1]))


def test_before_the_stem_has_run_nothing_is_made_together(made):
    model = conv_net()
    condition = ConditionConfig(**SOURCES["stem"], hidden=3)
    attach_random(model, AdapterConfig("metalora-tr", 2, targets=("0", *BODY), condition=condition))
    model(images(3))
    assert made == [3]  # once, under the condition of the pictures


@pytest.mark.parametrize("limit", ["MOST_NUMBERS", "MOST_TOGETHER"])
def test_large_mids_are_contracted_by_each_target(limit, made, monkeypatch):
    expected = run(*texts())
    monkeypatch.setattr(value_factors, limit, 9**2 - 1 if limit == "MOST_NUMBERS" else 9 * 4 * 9**2 - 1)
    made.clear()
    for value, other in zip(run(*texts()), expected, strict=True):
        assert_close(value, other)
    assert made == []


def test_one_condition_makes_no_mids(made):
    run(*texts(), conditions=1)
    assert made == []


def test_mids_are_matrices_for_kernels_that_read_them_so():
    _, adapter = texts("metalora-cp")
    assert FactorsUnderValues(adapter).joint == []
    adapter.uses_triton = True
    (joint,) = FactorsUnderValues(adapter).joint
    values = adapter.condition(torch.randn(4, 5, dtype=torch.float64)).values
    for path, mid in joint(values).items():
        assert_close(mid, torch.diag_embed(adapter.layers[path].mid(values)))
