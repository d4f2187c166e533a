"""Law 1: the adapted model starts as its base, bit for bit."""

import torch

from support.cases import attach_case
from support.laws import EVERY_CELL
from support.layers import apply


@EVERY_CELL
def test_1_starts_as_the_base(case, layer):
    model, adapter, x, condition = attach_case(case, layer, random=False)
    with adapter.disabled():
        base = model(x)
    assert torch.equal(model(x, **condition), base)
    assert torch.equal(base, apply(model[0].base, x, model[0].base.weight))
