"""The conditions, the forward and the step of the tests of sweeps."""

import torch

from metalora import ConditionConfig

CONSTANT = ConditionConfig(scope="constant")
GENERATED = ConditionConfig(source="tensor", feature_size=4, hidden=3)


def call_options(adapter):
    """The keywords of a forward and of `delta`: a condition of one example, a task, or neither."""
    if adapter.conditional:
        return {"condition": adapter.condition(torch.ones(1, 4))}
    return {"task_ids": 1} if adapter.config.tasks > 1 else {}


def all_deltas(adapter):
    """Delta W of every target."""
    condition = call_options(adapter).get("condition", adapter.task(1) if adapter.config.tasks > 1 else None)
    return {path: adapter.delta(path, condition).detach() for path in adapter.targets}


def training_step(net, adapter, optimizer, x):
    optimizer.zero_grad()
    net(x, **call_options(adapter)).square().sum().backward()
    optimizer.step()
