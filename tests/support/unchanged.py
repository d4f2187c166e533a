"""Whether a model is as it was: its modules, hooks, names, settings of gradients, numbers and outputs."""

from contextlib import contextmanager

import torch
from torch import nn

HOOKS = tuple(name for name in vars(nn.Linear(1, 1)) if name.endswith("_hooks"))


def look(model):
    """All that a caller can see of a model, tensors as copies."""
    modules = {path: id(module) for path, module in model.named_modules(remove_duplicate=False)}
    hooks = {path: {name: list(getattr(module, name)) for name in HOOKS} for path, module in model.named_modules()}
    attributes = {path: sorted(vars(module)) for path, module in model.named_modules()}
    lists = {
        path: [list(v) for v in vars(module).values() if isinstance(v, list)] for path, module in model.named_modules()
    }
    parameters = {name: (id(p), p.requires_grad) for name, p in model.named_parameters(remove_duplicate=False)}
    training = {path: module.training for path, module in model.named_modules()}
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return (modules, hooks, attributes, lists, parameters, training), state


@contextmanager
def unchanged(*models):
    """Fail if one of the models is another one after the block, also if the block raises."""
    before = [look(model) for model in models]
    try:
        yield
    finally:
        for model, (seen, state) in zip(models, before, strict=True):
            seen_now, state_now = look(model)
            assert seen_now == seen
            assert state_now.keys() == state.keys()
            assert all(torch.equal(state_now[name], value) for name, value in state.items())
