"""Features that a condition is made from: statistics that hooks record while a frozen network runs."""

import inspect
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from metalora._util.suggest import nearest
from metalora.adapters.conditioning.stages import stages
from metalora.adapters.heads import head_path

CACHES = ("past_key_values", "cache_params")  # what models of transformers call the memory of a decoded sequence
LOGITS = "logits_to_keep"  # how many positions from the end the head of a language model of transformers reads
EMBEDDING = "sentence_embedding"  # what sentence-transformers calls it
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


def channel_statistics(output: Any, weights: Tensor | None = None) -> Tensor:
    """Return the mean and the standard deviation of every channel over the positions.

    Args:
        output: Output of a module: a tensor (n, channels, height, width), (n, tokens, channels) or (n, channels), or a
            tuple whose first item is this tensor. A tensor (n, channels) has no positions and is returned as it is.
        weights: The weight of every token, (n, tokens, 1), as `token_weights` gives it; None if all positions count
            alike. It is ignored if its shape does not fit the output.

    Returns:
        Means, then standard deviations, (n, 2 * channels), float32.

    Example:
        >>> channel_statistics(torch.ones(3, 4, 5, 5)).shape
        torch.Size([3, 8])
    """
    x = output if isinstance(output, Tensor) else output[0]
    x = x.float()  # sums over thousands of positions are not exact in 16 bits
    if x.ndim == 2:
        return x
    position_axes = (1,) if x.ndim == 3 else tuple(range(2, x.ndim))
    weights = _fitting(weights, x)
    mean = x.mean(position_axes, keepdim=True) if weights is None else (x * weights).sum(1, keepdim=True)
    deviation = x - mean  # in two passes: torch.var is ten times slower on CPU
    # In place if no gradient needs the deviations: memory of the size of the output costs more than the arithmetic.
    squares = deviation.square() if deviation.requires_grad else deviation.square_()
    if weights is None:
        variance = squares.mean(position_axes)  # (n, channels)
    else:
        variance = (squares * weights if squares.requires_grad else squares.mul_(weights)).sum(1)
    # 1e-6, since the root of 0 has no finite gradient
    return torch.cat([mean.flatten(1), (variance + 1e-6).sqrt()], -1)


def token_weights(mask: Tensor | None) -> Tensor | None:
    """Return the weight of every token in a mean over the tokens that count, (n, tokens, 1), float32.

    Args:
        mask: The tokens that count, (n, tokens), 1 or 0; None if all of them count.

    Returns:
        The weights, which add up to 1 for each example; None without a mask.

    Example:
        >>> token_weights(torch.tensor([[1, 1, 0]])).flatten()
        tensor([0.5000, 0.5000, 0.0000])
    """
    if mask is None:
        return None
    counts = mask.float()
    return (counts / counts.sum(1, keepdim=True))[..., None]


def _fitting(weights: Tensor | None, x: Tensor) -> Tensor | None:
    """Return weights (n, tokens, 1) that belong to the positions of x; otherwise None."""
    return weights if weights is not None and x.shape[:-1] == weights.shape[:-1] else None


def between_class_share(features: Tensor, labels: Tensor) -> Tensor:
    """Return the share of the variance of each feature that lies between the classes.

    s = sum_y n_y (mean_y - mean)^2 / sum_i (f_i - mean)^2, with n_y the number of examples of class y.

    Args:
        features: Features of n examples, (n, d).
        labels: Their classes, (n,).

    Returns:
        The shares, (d,), between 0 and 1; 0 for a feature that does not vary.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> between_class_share(features, torch.tensor([0, 0, 1, 1]))
        tensor([1., 0.])
    """
    classes, index = torch.unique(labels, return_inverse=True)
    one_hot = torch.nn.functional.one_hot(index, len(classes)).to(features.dtype)  # (n, classes)
    varies = features.amax(0) > features.amin(0)
    centred = (features - features.mean(0)) * varies  # the mean of a constant may be off in its last bit
    class_sums = one_hot.mT @ centred  # (classes, d)
    # n_y (mean_y - mean)^2 = (sum of the centred features of y)^2 / n_y
    between = (class_sums.square() / one_hot.sum(0)[:, None]).sum(0)  # (d,)
    total = centred.square().sum(0)  # (d,)
    varies &= total > 0  # a dead channel may have values of 1e-33, whose squares are zero in float32
    return torch.where(varies, between / total.where(varies, torch.ones_like(total)), torch.zeros_like(total))


class Recorder(threading.local):
    """The features that the hooks of one feature source record in a forward pass; every thread has its own record.

    Attributes:
        active: Whether the hooks record.
        weights: The weight of every token in this forward pass, (n, tokens, 1); None if all of them count alike.
        recorded: The recorded features by the number of the hook, (n, d) each.

    Example:
        >>> recorder = Recorder()
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> handles = watch_stages(network, ["0", "1"], recorder)
        >>> recorder.features_of(network, torch.rand(5, 4)).shape
        torch.Size([5, 5])
    """

    def __init__(self) -> None:
        self.active = False
        self.weights: Tensor | None = None
        self.recorded: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Recorder, ()  # a copy starts empty

    def start(self, inputs: Inputs) -> None:
        """Start to record a forward pass.

        Args:
            inputs: The inputs of this forward pass; their padding does not count.
        """
        self.active = True
        self.weights = token_weights(token_mask(inputs))

    def stop(self) -> None:
        """Record nothing more until the next start."""
        self.active = False
        self.weights = None

    def suspend(self) -> Any:
        """Stop, empty the record, and return what `resume` needs to go on with it."""
        kept = self.weights, dict(self.recorded)
        self.stop()
        self.recorded.clear()
        return kept

    def resume(self, kept: Any) -> None:
        """Go on with a record that `suspend` has returned."""
        self.active = True
        self.weights, recorded = kept
        self.recorded.update(recorded)

    def take(self) -> Tensor:
        """Return the recorded features and empty the record.

        Returns:
            The features side by side, in the order of the hooks, (n, d).

        Raises:
            ValueError: Nothing was recorded.
        """
        recorded = dict(self.recorded)
        self.recorded.clear()  # in place, since torch.compile would keep a replaced dictionary
        if not recorded:
            raise ValueError("the feature source recorded nothing: its modules did not run in the forward pass")
        return torch.cat([recorded[number] for number in sorted(recorded)], -1)  # modules may run in any order

    def features_of(self, network: nn.Module, inputs: Inputs, logits: bool = True) -> Tensor:
        """Return the features of inputs under a network in eval mode; the network gets its modes back.

        Args:
            network: A network that has the hooks of this recorder.
            inputs: What the network takes.
            logits: Whether the features may depend on the head of a language model at all positions; False spares it
                all but one.

        Returns:
            The features, (n, d).

        Raises:
            ValueError: Nothing was recorded.
        """
        # Mode by mode: `network.eval()` and `.train()` would also change modules that were in eval mode before.
        training = [module for module in network.modules() if module.training]
        self.start(inputs)
        try:
            for module in training:
                module.training = False
            run(network, _for_features(network, inputs, logits))
            return self.take()
        finally:
            self.stop()
            for module in training:
                module.training = True


def _record_output(recorder: Recorder, index: int, module: nn.Module, args: Any, output: Any) -> None:
    """Record the channel statistics of an output, as a forward hook."""
    if recorder.active:
        recorder.recorded[index] = channel_statistics(output, recorder.weights)


def _record_input(recorder: Recorder, index: int, module: nn.Module, args: Any) -> None:
    """Record the mean of the first input over its positions, as a forward pre-hook."""
    if recorder.active:
        recorder.recorded[index] = pooled(args[0], recorder.weights)


def _record_answer(recorder: Recorder, index: int, module: nn.Module, args: Any, output: Any) -> None:
    """Record the mean over the positions of what a whole network returns, as a forward hook."""
    if recorder.active:
        recorder.recorded[index] = pooled(_first_tensor(output), recorder.weights)


def _first_tensor(output: Any) -> Tensor:
    """The first tensor of what a network returns: a tensor, a sequence, or the numbers of a mapping.

    A mapping of sentence-transformers also has the inputs, so that its embedding goes before all others.
    """
    while not isinstance(output, Tensor):
        if isinstance(output, Mapping):
            numbers = (value for value in output.values() if not _is_integer_tensor(value))
            output = output[EMBEDDING] if EMBEDDING in output else next(numbers)
        else:
            output = output[0]
    return output


def _is_integer_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()


def pooled(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over the positions, or over the tokens that count.

    Args:
        x: A tensor (n, channels, height, width), (n, tokens, channels) or (n, channels).
        weights: The weight of every token, (n, tokens, 1), as `token_weights` gives it. It is ignored if its shape does
            not fit x.

    Returns:
        The means, (n, channels), float32.

    Example:
        >>> pooled(torch.tensor([[[1.0], [3.0], [8.0]]]), token_weights(torch.tensor([[1, 1, 0]])))
        tensor([[2.]])
    """
    x = x.float()
    if x.ndim == 2:
        return x
    weights = _fitting(weights, x)
    if weights is not None:
        return (x * weights).sum(1)
    return x.mean(tuple(range(2, x.ndim)) if x.ndim == 4 else 1)


def _for_features(network: nn.Module, inputs: Inputs, logits: bool) -> Inputs:
    """Return inputs whose forward runs over all positions and does not write to a key-value cache."""
    if not hasattr(inputs, "keys"):
        return inputs
    mapping = cast(Mapping[str, Any], inputs)
    # "logits_to_keep" cuts the positions that the head reads down to those of the next token.
    named = {key: mapping[key] for key in mapping.keys() if key not in (*CACHES, LOGITS)}
    # A loss needs all of them.
    if not logits and named.get("labels") is None and LOGITS in inspect.signature(network.forward).parameters:
        named[LOGITS] = 1
    return named


def watch_stages(model: nn.Module, paths: Sequence[str], recorder: Recorder) -> list[Any]:
    """Add hooks that record the channel statistics of the output of every stage.

    Args:
        model: The network that has the stages.
        paths: Paths of the stages in the network.
        recorder: Where the hooks record.

    Returns:
        The handles of the hooks, one for each stage.

    Raises:
        ValueError: A path is none of the network.

    Example:
        >>> len(watch_stages(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), ["0"], Recorder()))
        1
    """
    names = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in names:
            raise ValueError(
                f"stage {path!r} is no module of {type(model).__name__}{nearest(path, filter(None, names))}"
            )
    modules = [_last(names[path]) for path in paths]
    return [
        module.register_forward_hook(partial(_record_output, recorder, number)) for number, module in enumerate(modules)
    ]


def _last(module: nn.Module) -> nn.Module:
    """Return the last part of a Sequential: it runs even if checkpointing calls the parts and not the Sequential."""
    while type(module) is nn.Sequential and len(module):
        module = module[-1]
    return module


def stage_statistics(model: nn.Module, inputs: Inputs, paths: Sequence[str] = ()) -> Tensor:
    """Return the channel statistics of every stage, from one forward pass; the hooks are removed after it.

    Args:
        model: The network that has the stages.
        inputs: What the network takes, for n examples.
        paths: Paths of the stages; empty: the stages that the architecture of the network gives.

    Returns:
        The statistics of the stages side by side, (n, d).

    Raises:
        ValueError: The network has no stages that can be told apart, or none of them ran.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))
        >>> stage_statistics(network, torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 18])
    """
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
    """Add a hook that records the pooled last layer: the input of the output head, or the output of a network without.

    Args:
        model: The network.
        recorder: Where the hook records.

    Returns:
        A list with the handle of the hook.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> recorder = Recorder()
        >>> handles = watch_head(network, recorder)
        >>> recorder.features_of(network, torch.rand(5, 4)).shape
        torch.Size([5, 3])
    """
    path = head_path(model)
    if path is None:
        return [model.register_forward_hook(partial(_record_answer, recorder, 0))]
    return [model.get_submodule(path).register_forward_pre_hook(partial(_record_input, recorder, 0))]


def token_mask(inputs: Inputs) -> Tensor | None:
    """Return which tokens of a padded batch count: its `attention_mask`.

    Args:
        inputs: What a model takes.

    Returns:
        The mask, (n, tokens); None if the inputs have no mask of two axes.

    Example:
        >>> token_mask({"attention_mask": torch.tensor([[1, 1, 0]])})
        tensor([[1, 1, 0]])
        >>> token_mask(torch.rand(2, 3)) is None
        True
    """
    if isinstance(inputs, Tensor):
        return None
    arguments = inputs.values() if isinstance(inputs, Mapping) else inputs
    # The first argument of a model of sentence-transformers is a mapping itself.
    mappings: tuple[Any, ...] = (inputs, next(iter(arguments), None))
    for named in mappings:
        mask = named.get("attention_mask") if hasattr(named, "get") else None
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask
    return None


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Call a model on its inputs.

    Args:
        model: The model.
        inputs: A tensor, a sequence of positional arguments or a mapping of keyword arguments. A mapping that has other
            names than the model's forward is its first argument, as sentence-transformers has it.

    Returns:
        What the model returns.

    Example:
        >>> run(nn.Linear(4, 2), {"input": torch.rand(3, 4)}).shape
        torch.Size([3, 2])
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    if isinstance(inputs, Mapping) or hasattr(inputs, "keys"):
        named = cast(Mapping[str, Any], inputs)
        return model(**named) if _has_names_of_forward(model, named) else model(named)
    return model(*inputs)


def _has_names_of_forward(model: nn.Module, named: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(model.forward).bind(**named)
    except TypeError:
        return False
    return True


def example_input(model: nn.Module) -> Inputs:
    """Return a small input that the model takes, to measure the number of its features.

    Args:
        model: A model of images, of sequences or of vectors, or one with `dummy_inputs` (Hugging Face).

    Returns:
        An input for one example, or the tensors of `dummy_inputs`, on the device of the model.

    Raises:
        ValueError: The input cannot be guessed.

    Example:
        >>> example_input(nn.Sequential(nn.Conv2d(3, 8, 3))).shape
        torch.Size([1, 3, 64, 64])
    """
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    if parameter.is_meta and hasattr(model, "_hf_hook"):  # accelerate keeps the weights elsewhere, and moves the inputs
        device = torch.device("cpu")
    dummy = getattr(model, "dummy_inputs", None)
    if dummy is not None:
        return {key: value.to(device) for key, value in dummy.items() if isinstance(value, Tensor)}
    first = next((module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Conv1d, nn.Linear))), None)
    if isinstance(first, nn.Conv2d):
        return torch.zeros(1, first.in_channels, *(image_size_of(model) or (64, 64)), device=device, dtype=dtype)
    if isinstance(first, nn.Conv1d):
        return torch.zeros(1, first.in_channels, 64, device=device, dtype=dtype)
    if isinstance(first, nn.Linear):
        return torch.zeros(1, first.in_features, device=device, dtype=dtype)
    raise ValueError(f"cannot guess an input of {type(model).__name__}: pass attach(..., example=inputs)")


def image_size_of(model: nn.Module) -> tuple[int, ...] | None:
    """Return the height and width that a network was built for.

    Args:
        model: The network; the parts of timm's transformers and Mixers know the size.

    Returns:
        The size in pixels; None if no part states it.

    Example:
        >>> image_size_of(nn.Conv2d(3, 8, 3)) is None
        True
    """
    sizes = (getattr(module, "img_size", None) for module in model.modules())
    return next((size for size in sizes if isinstance(size, tuple)), None)
