"""A task that is added later: only its slice learns, the rest keeps its bits."""

import copy

import pytest
import torch

from metalora import load, merge, new_task, save, sweep
from metalora.config import TrainConfig
from metalora.training.loop import fit
from support.transformer import WIDTH, attach_to_transformer, small_transformer

X = torch.randn(4, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TARGET = torch.randn(4, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def loss_of(net, task):
    return lambda step: (net(X, task_ids=task) - TARGET).square().mean()


@pytest.mark.parametrize("tasks", (1, 3))
@pytest.mark.parametrize("method", ("metatt-4+1d", "metatt-6d"))
def test_only_the_new_slice_learns(method, tasks, tmp_path):
    net, adapter = attach_to_transformer(method, targets=("query", "up"), tasks=tasks)
    before = {key: value.detach().clone() for key, value in adapter.factors.items()}
    outputs = [net(X, **({"task_ids": t} if tasks > 1 else {})).detach() for t in range(tasks)]
    with new_task(adapter) as task:
        assert task == tasks == adapter.config.tasks - 1
        trainable = [p for p in adapter.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trainable) == 4  # r x r
        losses = fit(net, adapter, loss_of(net, task), TrainConfig(steps=30, lr=5e-2, weight_decay=0.5))
        learned = net(X, task_ids=task).detach()
    assert losses[-1] < losses[0]
    for key, value in adapter.factors.items():
        modes = adapter.layout.params[key].modes
        kept = value.narrow(modes.index("task"), 0, tasks) if "task" in modes else value
        assert torch.equal(kept, before[key]) and value.requires_grad
    assert not len(adapter.pending_task) and adapter.num_params() == sum(v.numel() for v in before.values()) + 4
    assert torch.equal(net(X, task_ids=task), learned)
    for t, want in enumerate(outputs):
        torch.testing.assert_close(net(X, task_ids=t), want, rtol=1e-12, atol=1e-12)
    ids = torch.tensor([0, task, task, 0])
    mixed = net(X, task_ids=ids)
    torch.testing.assert_close(mixed[1:3], learned[1:3], rtol=1e-9, atol=1e-9)
    save(net, tmp_path / "a")
    again = load(small_transformer(), tmp_path / "a")
    assert torch.equal(again.model(X, task_ids=ids), mixed)
    twin = copy.deepcopy(net)
    merge(twin, adapter.task(task))
    torch.testing.assert_close(twin(X), learned, rtol=1e-9, atol=1e-9)
    for given in ({"task_ids": 0}, {"condition": adapter.task(0)}):
        with pytest.raises(ValueError, match="is merged, so a forward takes no condition and no task_ids; unmerge it"):
            twin(X, **given)


def test_a_new_task_starts_like_the_mean_or_like_another():
    net, adapter = attach_to_transformer("metatt-4+1d", targets=("query",), tasks=3)
    mean = adapter.factors["G3"].detach().mean(1)
    for like, want in ((None, mean), (1, adapter.factors["G3"].detach()[:, 1])):
        twin = copy.deepcopy(net)
        other = twin.layers[0].attention.query.owner[0]
        with new_task(other, like=like) as task:
            torch.testing.assert_close(other.task(task).values["G3"][0], want)
        torch.testing.assert_close(other.factors["G3"].detach()[:, task], want)


def test_an_error_inside_keeps_what_was_learned_and_what_was_trained_before():
    net, adapter = attach_to_transformer("metatt-4+1d", targets=("query",), tasks=2)
    adapter.factors["G1"].requires_grad_(False)
    with pytest.raises(KeyError), new_task(adapter) as task:
        with torch.no_grad():
            adapter.pending_task["G3"].fill_(7.0)
        raise KeyError
    assert (adapter.factors["G3"][:, task] == 7).all() and not len(adapter.pending_task)
    assert not adapter.factors["G1"].requires_grad and adapter.factors["G2"].requires_grad
    sweep(net, rank=1)
    assert adapter.factors["G3"].shape == (1, 3, 1)


@pytest.mark.parametrize(
    "options, like, message",
    [
        (dict(method="metatt-4d"), None, "'metatt-4d' has no task mode"),
        (dict(method="metatt-4+1d", tasks=2), 2, "task 2: expected 0..1"),
    ],
)
def test_refusals(options, like, message):
    net, adapter = attach_to_transformer(targets=("query",), **options)
    config = adapter.config
    with pytest.raises(ValueError, match=message), new_task(adapter, like=like):
        pass
    assert adapter.config == config and not len(adapter.pending_task)


@pytest.mark.parametrize("ids", [2, -1, 0.5, True, [0, 2], torch.tensor([True, False])], ids=str)
def test_what_is_no_number_of_a_task(ids):
    _, adapter = attach_to_transformer("metatt-4+1d", targets=("query",), tasks=2)
    with pytest.raises(ValueError, match="expected 0..1"):
        adapter.task(ids)
