"""A run that is interrupted and resumed ends with the same numbers, bit for bit."""

import pytest
import torch

from metalora.training.loop import fit


def resumes_to_the_same_bits(build, numbers, config, stop_step, folder):
    """Run the loop once without and once with an interruption, and compare the results.

    Args:
        build: Returns a new (model, adapter, function from step to loss).
        numbers: Returns the tensors of an adapter by name.
        config: The configuration of the training.
        stop_step: The step at which Ctrl-C comes.
        folder: Where the checkpoint is written.
    """
    model, adapter, step_loss = build()
    uninterrupted = fit(model, adapter, step_loss, config)
    model, again, step_loss = build()

    def stops(step):
        if step == stop_step:
            raise KeyboardInterrupt
        return step_loss(step)

    with pytest.raises(KeyboardInterrupt):
        fit(model, again, stops, config, checkpoint=folder / "c")
    model, again, step_loss = build()
    assert fit(model, again, step_loss, config, checkpoint=folder / "c") == uninterrupted
    want = numbers(adapter)
    assert all(torch.equal(value, want[key]) for key, value in numbers(again).items())
