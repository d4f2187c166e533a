"""Law 6: in a mixed batch every example gets what it gets alone."""

import pytest
import torch

from support.adapters import assert_close
from support.cases import attach_case
from support.laws import EVERY_CELL, EVERY_SIZE, GENERATED
from support.layers import LAYERS

FITTING = {
    f"{name}-{kind}": (case, layer)
    for name, case in GENERATED.items()
    for kind, layer in LAYERS.items()
    if case.fits(layer)
}


@EVERY_SIZE
@EVERY_CELL
def test_6_a_mixed_batch_is_each_example_alone(case, layer, size):
    model, adapter, x, condition = attach_case(case, layer, size)
    got = model(x, **condition)
    pick = (lambda i: {"condition": condition["condition"][i]}) if condition else (lambda i: {})
    for i in range(len(x)):
        assert_close(got[i : i + 1], model(x[i : i + 1], **pick(i)))
    order = torch.tensor([2, 0, 3, 1])
    assert_close(model(x[order], **pick(order)), got[order])


@pytest.mark.parametrize("case, layer", FITTING.values(), ids=FITTING)
def test_6_one_condition_serves_a_whole_batch(case, layer):
    model, adapter, x, condition = attach_case(case, layer)
    one = condition["condition"][1]
    four = one.stack([one] * len(x))
    assert_close(model(x, condition=one), model(x, condition=four))
