"""A run that is cut off and goes on ends in the same bits."""

import pytest
import torch

from metalora.training.loop import fit


def resumes_to_the_same_bits(made, numbers, config, cut, folder):
    """made() -> (model, adapter, step -> loss); numbers(adapter) -> tensors by name; Ctrl-C comes at step `cut`."""
    model, adapter, step_loss = made()
    whole = fit(model, adapter, step_loss, config)
    model, again, step_loss = made()

    def stops(step):
        if step == cut:
            raise KeyboardInterrupt
        return step_loss(step)

    with pytest.raises(KeyboardInterrupt):
        fit(model, again, stops, config, checkpoint=folder / "c")
    model, again, step_loss = made()
    assert fit(model, again, step_loss, config, checkpoint=folder / "c") == whole
    want = numbers(adapter)
    assert all(torch.equal(value, want[key]) for key, value in numbers(again).items())
