"""Features that a condition is made from: statistics that hooks record while a frozen network runs."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora.adapters.conditioning.stages import stages
from metalora.adapters.targets import head_path

CACHES = ("past_key_values", "cache_params")  # what models of transformers call the memory of a decoded sequence
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


def channel_statistics(output: Any, mask: Tensor | None = None) -> Tensor:
    """Mean and standard deviation of every channel over positions: (b, c, h, w) or (b, t, c) -> (b, 2c), float32.

    mask: (b, t), the tokens that count; one of another shape is not of this output. An output of (b, c) has no
    positions and is returned as it is.
    """
    x = output if isinstance(output, Tensor) else output[0]
    x = x.float()
    if x.ndim == 2:
        return x
    dims, weight = (1,) if x.ndim == 3 else tuple(range(2, x.ndim)), _weights(x, mask)
    if weight is not None:
        mean = (x * weight).sum(1, keepdim=True)
        var = ((x - mean).square() * weight).sum(1)
        return torch.cat([mean.flatten(1), (var + 1e-6).sqrt()], -1)
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims)  # in two passes: torch.var is ten times slower on CPU
    return torch.cat([mean.flatten(1), (var + 1e-6).sqrt()], -1)


def _weights(x: Tensor, mask: Tensor | None) -> Tensor | None:
    """What every token counts in a mean, (b, t, 1); None where all count alike or the mask is not of x."""
    if mask is None or x.shape[:-1] != mask.shape:
        return None
    return (mask / mask.sum(1, keepdim=True)).to(x.dtype)[..., None]


def between_class_share(features: Tensor, labels: Tensor) -> Tensor:
    """The share of each feature's variance that lies between classes: (n, d), (n,) -> (d,) in [0, 1].

    s = sum_y n_y (mean_y - mean)^2 / sum_i (f_i - mean)^2; a feature that does not vary has a share of 0.
    """
    classes, index = torch.unique(labels, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(index, len(classes)).to(features.dtype)
    varies = features.amax(0) > features.amin(0)
    centred = (features - features.mean(0)) * varies  # the mean of a constant may be off in its last bit
    sums = one_hot.mT @ centred  # (class, d)
    between = (sums.square() / one_hot.sum(0)[:, None]).sum(0)
    total = centred.square().sum(0)
    varies &= total > 0  # the squares of a dead channel's 1e-33 are zero
    return torch.where(varies, between / total.where(varies, torch.ones_like(total)), torch.zeros_like(total))


class Recorder(threading.local):
    """What the hooks of one feature source have seen during one forward pass; every thread has its own record."""

    def __init__(self) -> None:
        self.active = False
        self.mask: Tensor | None = None
        self.seen: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorder, ()  # a copy starts empty

    def start(self, inputs: Inputs) -> None:
        """Record what a forward with these inputs gives, but for its padding."""
        self.active, self.mask = True, token_mask(inputs)

    def stop(self) -> None:
        """Record no more."""
        self.active, self.mask = False, None

    def take(self) -> Tensor:
        """The recorded features in the order of the hooks, (b, d); the record is emptied."""
        seen, self.seen = self.seen, {}
        if not seen:
            raise ValueError("the feature source recorded nothing: its modules did not run in the forward pass")
        return torch.cat([seen[k] for k in sorted(seen)], -1)

    def of(self, network: nn.Module, inputs: Inputs) -> Tensor:
        """The features of inputs under a network that is watched, in eval mode."""
        training = [module for module in network.modules() if module.training]
        self.start(inputs)
        try:
            for module in training:
                module.training = False
            run(network, _for_features(inputs))
            return self.take()
        finally:
            self.stop()
            for module in training:
                module.training = True


def _record_output(recorder: Recorder, index: int, module: nn.Module, args: Any, output: Any) -> None:
    if recorder.active:
        recorder.seen[index] = channel_statistics(output, recorder.mask)


def _record_input(recorder: Recorder, index: int, module: nn.Module, args: Any) -> None:
    if recorder.active:
        recorder.seen[index] = pooled(args[0], recorder.mask)


def pooled(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over positions, or over the tokens that count, (b, c)."""
    x, weight = x.float(), _weights(x, mask)
    if x.ndim == 2:
        return x
    return x.mean(tuple(range(2, x.ndim)) if x.ndim == 4 else 1) if weight is None else (x * weight).sum(1)


def _for_features(inputs: Inputs) -> Inputs:
    """Inputs whose forward runs over all positions, and writes to no cache."""
    if hasattr(inputs, "keys"):
        mapping = cast(Mapping[str, Any], inputs)
        return {key: mapping[key] for key in mapping.keys() if key not in (*CACHES, "logits_to_keep")}
    return inputs


def watch_stages(model: nn.Module, paths: Sequence[str], recorder: Recorder) -> list[Any]:
    """Record the channel statistics of every stage's output; returns the handles of the hooks."""
    modules = [_last(model.get_submodule(path)) for path in paths]
    return [m.register_forward_hook(partial(_record_output, recorder, k)) for k, m in enumerate(modules)]


def _last(module: nn.Module) -> nn.Module:
    """The last part of a Sequential: it runs even where checkpointing calls the parts and not the whole."""
    while type(module) is nn.Sequential and len(module):
        module = module[-1]
    return module


def stage_statistics(model: nn.Module, inputs: Inputs, paths: Sequence[str] = ()) -> Tensor:
    """Channel statistics of every stage (found by architecture if not named), (n, d): one pass, hooks removed after."""
    recorder = Recorder()
    handles = watch_stages(model, paths or stages(model), recorder)
    recorder.start(inputs)
    try:
        run(model, inputs)
        return recorder.take()
    finally:
        for handle in handles:
            handle.remove()


def watch_head(model: nn.Module, recorder: Recorder) -> list[Any]:
    """Record the input of the output head (the pooled last layer); returns the handle of the hook."""
    path = head_path(model)
    if path is None:
        raise ValueError(f"condition source 'pooled': {type(model).__name__} has no output head to read the input of")
    return [model.get_submodule(path).register_forward_pre_hook(partial(_record_input, recorder, 0))]


def token_mask(inputs: Inputs) -> Tensor | None:
    """Which tokens of a padded batch count: its `attention_mask` (b, t), if it has one."""
    mask = inputs.get("attention_mask") if hasattr(inputs, "get") else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model on a tensor, a sequence of positional arguments or a mapping of keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping) or hasattr(inputs, "keys"):
        return model(**cast(Mapping[str, Any], inputs))
    return model(*inputs)


def example_input(model: nn.Module) -> Inputs:
    """A smallest input that the model takes, to learn the width of its features; ValueError if it cannot be guessed."""
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    dummy = getattr(model, "dummy_inputs", None)
    if dummy is not None:
        return {key: value.to(device) for key, value in dummy.items() if isinstance(value, Tensor)}
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Conv1d, nn.Linear))), None)
    sizes = (getattr(module, "img_size", None) for module in model.modules())
    sized: tuple[int, ...] | None = next((size for size in sizes if isinstance(size, tuple)), None)
    if isinstance(first, nn.Conv2d):
        return torch.zeros(1, first.in_channels, *(sized or (64, 64)), device=device, dtype=dtype)
    if isinstance(first, nn.Conv1d):
        return torch.zeros(1, first.in_channels, 64, device=device, dtype=dtype)
    if isinstance(first, nn.Linear):
        return torch.zeros(1, first.in_features, device=device, dtype=dtype)
    raise ValueError(f"cannot guess an input of {type(model).__name__}: pass attach(..., example=inputs)")
