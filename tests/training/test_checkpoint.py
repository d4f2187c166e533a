"""The checkpoint of a run holds whatever the run trains: a head, and the slice of a task that is being added."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from metalora import AdapterConfig, attach, new_task
from metalora.config import TrainConfig
from metalora.training.loop import fit
from support.transformer import WIDTH, attach_to_transformer

CONFIG = TrainConfig(steps=6, lr=1e-2)
X = torch.randn(4, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def numbers(*modules):
    """The state of some modules in one dictionary."""
    combined = {}
    for index, module in enumerate(modules):
        combined |= {f"{index}.{name}": value.clone() for name, value in module.state_dict().items()}
    return combined


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


def with_a_head(cut_at, checkpoint):
    """(losses, numbers) of a run of an adapter and a head that ends before step `cut_at`."""
    torch.manual_seed(0)
    model, head = nn.Sequential(nn.Linear(WIDTH, 4), nn.Dropout()).double(), nn.Linear(4, 2).double()
    adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))

    def step_loss(k):
        if k == cut_at:
            raise KeyboardInterrupt
        return head(model(X)).square().mean()

    losses = None
    with contextlib.suppress(KeyboardInterrupt):
        losses = fit(model, adapter, step_loss, CONFIG, extra_module=head, checkpoint=checkpoint)
    return losses, numbers(adapter, head)


def with_a_new_task(cut_at, checkpoint):
    """(losses, numbers) of a run that trains the slice of a new task and ends before step `cut_at`."""
    model, adapter = attach_to_transformer("metatt-4+1d", targets=("query", "up"), tasks=2)
    losses = None
    with new_task(adapter) as task, contextlib.suppress(KeyboardInterrupt):

        def step_loss(k):
            if k == cut_at:
                raise KeyboardInterrupt
            return model(X, task_ids=task).square().mean()

        losses = fit(model, adapter, step_loss, CONFIG, checkpoint=checkpoint)
    return losses, numbers(adapter)


@pytest.mark.parametrize("run", [with_a_head, with_a_new_task])
def test_an_interrupted_run_resumes_to_the_same_bits(run, tmp_path):
    losses, state = run(None, None)
    assert len(losses) == CONFIG.steps
    cut, cut_state = run(3, tmp_path / "run.pt")
    assert cut is None and any(not torch.equal(value, state[name]) for name, value in cut_state.items())
    resumed, resumed_state = run(None, tmp_path / "run.pt")
    assert resumed == losses
    assert_same(resumed_state, state)


def test_a_checkpoint_of_a_run_with_another_head_is_refused(tmp_path):
    with_a_head(3, tmp_path / "run.pt")
    model, head = nn.Sequential(nn.Linear(WIDTH, 4)).double(), nn.Linear(4, 3).double()
    adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))
    with pytest.raises(ValueError, match="made by another run"):
        fit(model, adapter, lambda k: None, CONFIG, extra_module=head, checkpoint=tmp_path / "run.pt")


def run_on(base, checkpoint, steps=None):
    """A run of an adapter of the layer "0" that is interrupted before step `steps`."""
    model, head = copy.deepcopy(base), nn.Linear(3, 2).double()
    adapter = attach(model, AdapterConfig("lora", rank=2, targets=("0",)))

    def step_loss(k):
        if k == steps:
            raise KeyboardInterrupt
        return head(model(X.flatten(0, 1))).square().mean()

    with contextlib.suppress(KeyboardInterrupt):
        return fit(model, adapter, step_loss, CONFIG, extra_module=head, checkpoint=checkpoint)


BASES = {
    "the last row of an adapted weight": (lambda m: m[0].weight.data[-1].neg_(), "the base weights"),
    "the bias of an adapted layer": (lambda m: m[0].bias.data.add_(1), "other parameters or buffers"),
    "another layer": (lambda m: m[2].weight.data.add_(1), "other parameters or buffers"),
    "statistics": (lambda m: m[1].running_mean.add_(1), "other parameters or buffers"),
}


@pytest.mark.parametrize("change, message", BASES.values(), ids=BASES)
def test_a_checkpoint_of_a_run_on_another_base_is_refused(change, message, tmp_path):
    torch.manual_seed(0)
    path, base = tmp_path / "run.pt", nn.Sequential(nn.Linear(WIDTH, 300), nn.BatchNorm1d(300), nn.Linear(300, 3))
    base.double().eval()
    run_on(base, path, steps=3)
    content, other = path.read_bytes(), copy.deepcopy(base)
    change(other)
    with pytest.raises(ValueError, match=f"^{path}: {message}.*delete it to restart"):
        run_on(other, path)
    assert path.read_bytes() == content
    assert len(run_on(base, path)) == CONFIG.steps
