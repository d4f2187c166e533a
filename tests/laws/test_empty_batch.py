"""A batch of no examples has an output of no examples, and moves nothing."""

import torch

from support.cases import attach_case
from support.laws import EVERY_CELL


@EVERY_CELL
def test_no_examples_give_no_outputs_and_no_gradients(case, layer):
    model, adapter, _, options = attach_case(case, layer)
    x = layer.inputs(batch=0)
    if options:
        options = {"condition": options["condition"][torch.arange(0)]}
    adapter.train()
    output = model(x, **options)
    assert output.shape == model[0].base(x).shape and len(output) == 0
    output.sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in adapter.parameters())
