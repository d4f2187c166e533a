"""Law 6: in a mixed batch every example gets what it gets alone."""

import torch

from support.adapters import assert_close
from support.cases import SIZES, attach_case, inputs_of_size
from support.laws import EVERY_CELL, EVERY_PER_EXAMPLE


@EVERY_CELL
def test_6_a_mixed_batch_is_each_example_alone(case, layer):
    model, adapter, _, condition = attach_case(case, layer)
    pick = (lambda i: {"condition": condition["condition"][i]}) if condition else (lambda i: {})
    order = torch.tensor([2, 0, 3, 1])
    for size in SIZES:
        x = inputs_of_size(adapter, layer, size)
        got = model(x, **condition)
        for i in range(len(x)):
            assert_close(got[i : i + 1], model(x[i : i + 1], **pick(i)), name=size)
        assert_close(model(x[order], **pick(order)), got[order], name=size)


@EVERY_PER_EXAMPLE
def test_6_one_condition_serves_a_whole_batch(case, layer):
    model, adapter, x, condition = attach_case(case, layer)
    one = condition["condition"][1]
    four = one.stack([one] * len(x))
    assert_close(model(x, condition=one), model(x, condition=four))
