"""The features of a readout: channel statistics of all stages, of the frozen and of the adapted network."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from metalora._util.sending import sent
from metalora.adapters.adapter import Adapter
from metalora.adapters.conditioning.condition import Condition
from metalora.adapters.conditioning.features import (
    Inputs,
    Recorder,
    channel_statistics,
    run,
    token_mask,
    token_weights,
    watch_head,
    watch_stages,
)
from metalora.adapters.conditioning.stages import stages as stages_of
from metalora.adapters.layers import AdaptedLayer
from metalora.learner.length_parts import by_length
from metalora.learner.swap import FactorUse


class StageFeatures:
    """Records the mean and the standard deviation of every channel at every stage of a network.

    phi(x) = [statistics of the frozen network | of the adapted network | of the hidden activations of the adapter, if
    `hidden` is set]. The frozen part needs no gradient and does not depend on the task, so it can be computed once per
    input. The hidden activation of an adapted layer is h = x Left, with as many channels as the adapter has ranks.

    Args:
        model: The network, with its adapter attached already.
        adapter: The adapter; None: there is no adapted half.
        stages: Paths of the stages; empty: those that the architecture gives.
        hidden: Whether the features of the adapted network contain the statistics of the hidden activations.

    Attributes:
        stages: Paths of the stages.
        hidden: As given.
        factor_use: Who runs the adapter, and with which factors.

    Raises:
        ValueError: The network has no stages that can be told apart.

    Example:
        >>> features = StageFeatures(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), None)
        >>> features.frozen(torch.rand(5, 4)).shape
        torch.Size([5, 6])
    """

    def __init__(self, model: nn.Module, adapter: Adapter | None, stages: Sequence[str] = (), hidden: bool = False):
        self.model, self.adapter, self.hidden = model, adapter, hidden
        self.stages = tuple(stages) or tuple(stages_of(model))
        self.factor_use = FactorUse(adapter)
        self._recorder = Recorder()
        self._handles = watch_stages(model, self.stages, self._recorder)
        self._hidden = HiddenRecorder()
        if adapter is not None:
            self._handles += self._hidden.watch(adapter)

    def remove(self) -> None:
        """Remove the hooks from the network."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def frozen(self, inputs: Inputs) -> Tensor:
        """Return the statistics of the frozen network, without a gradient.

        Args:
            inputs: What the network takes, for n examples.

        Returns:
            The statistics, (n, d), float32.
        """
        with contextlib.nullcontext() if self.adapter is None else self.adapter.disabled():
            return by_length(self._record, inputs)

    @torch.no_grad()
    def last_layer(self, inputs: Inputs) -> Tensor:
        """Return the pooled last layer of the frozen network: the input of its head, or its output if it has none.

        For texts it is the mean of the last stage over the tokens.

        Args:
            inputs: What the network takes, for n examples.

        Returns:
            The pooled last layer, (n, width), float32.
        """
        with contextlib.nullcontext() if self.adapter is None else self.adapter.disabled():
            return self.adapted_last_layer(inputs)

    def adapted_last_layer(self, inputs: Inputs) -> Tensor:
        """Return the same of the adapted network, differentiable with respect to the adapter.

        Args:
            inputs: What the network takes, for n examples.

        Returns:
            The pooled last layer, (n, width), float32.
        """
        recorder = Recorder()
        is_text = token_mask(inputs) is not None
        handles = watch_stages(self.model, self.stages[-1:], recorder) if is_text else watch_head(self.model, recorder)

        def read(part: Inputs) -> Tensor:
            recorder.start(part)
            run(self.model, part)
            return recorder.take()

        try:
            with self.factor_use.own():
                pooled = by_length(read, inputs)
        finally:
            for handle in handles:
                handle.remove()
        return pooled[:, : pooled.shape[1] // 2] if is_text else pooled  # the means come before the deviations

    def adapted(self, inputs: Inputs, condition: Condition | None = None, rows: Tensor | None = None) -> Tensor:
        """Return the statistics of the adapted network, differentiable with respect to the adapter.

        Args:
            inputs: What the network takes, for n examples.
            condition: The condition of a generated adapter; one for all, or one for each example.
            rows: Number of the condition of each example, (n,), if `condition` has any number of conditions.

        Returns:
            The statistics, (n, d), float32; (n, 0) without an adapter.
        """
        if self.adapter is None:
            return torch.empty(batch_size(inputs), 0, device=next(self.model.parameters()).device)
        record = self._record_adapted if self.hidden else self._record
        with self.factor_use.own():
            if condition is None or (rows is None and len(condition) == 1):
                with contextlib.nullcontext() if condition is None else self.adapter.using(condition):
                    return by_length(record, inputs)
            rows = torch.arange(len(condition)) if rows is None else rows
            return by_length(partial(self._record_rows, record, condition), inputs, rows)

    def _record_rows(
        self, record: Callable[[Inputs], Tensor], condition: Condition, inputs: Inputs, rows: Any
    ) -> Tensor:
        """Record inputs of n examples under the conditions of their rows, (n,)."""
        assert self.adapter is not None
        with self.adapter.using(condition, rows=rows):
            return record(inputs)

    def hidden_statistics(self, inputs: Inputs, condition: Condition | None = None) -> dict[str, Tensor]:
        """Return the statistics of the hidden activations of each adapted layer: path -> (n, 2 * ranks).

        Args:
            inputs: What the network takes, for n examples.
            condition: The condition of a generated adapter.
        """
        with self._under(condition):
            with self._hidden.recording(token_weights(token_mask(inputs))) as statistics:
                run(self.model, inputs)
        return statistics

    @contextlib.contextmanager
    def _under(self, condition: Condition | None) -> Iterator[None]:
        """Run the adapter inside under a condition, while no other thread has put other factors in."""
        assert self.adapter is not None
        with self.factor_use.own(), contextlib.nullcontext() if condition is None else self.adapter.using(condition):
            yield

    def _record_adapted(self, inputs: Inputs) -> Tensor:
        with self._hidden.recording(token_weights(token_mask(inputs))) as statistics:
            stages = self._record(inputs)
        return torch.cat([stages, *statistics.values()], 1)

    def _record(self, inputs: Inputs) -> Tensor:
        self._recorder.start(inputs)
        try:
            run(self.model, inputs)
            return self._recorder.take()
        finally:
            self._recorder.stop()


class HiddenRecorder(threading.local):
    """Records the mean and standard deviation of every channel of the hidden activations of adapted layers.

    Every thread has its own record, and a copy starts empty.
    """

    def __init__(self) -> None:
        self._recorded: dict[str, Tensor] | None = None
        self._weights: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return HiddenRecorder, ()

    def watch(self, adapter: Adapter) -> list[Any]:
        """Add a hook to each adapted layer whose update has low rank, and return the handles."""
        return [
            layer.register_forward_pre_hook(partial(self._record, path))
            for path, layer in adapter.layers.items()
            if isinstance(layer, AdaptedLayer) and layer.low_rank is not None
        ]

    @contextlib.contextmanager
    def recording(self, weights: Tensor | None) -> Iterator[dict[str, Tensor]]:
        """Record during the block; yields path -> statistics (n, 2 * ranks), which fills up.

        Args:
            weights: The weight of every token, (n, tokens, 1); None: all of them count alike.
        """
        recorded: dict[str, Tensor] = {}
        self._recorded, self._weights = recorded, weights
        try:
            yield recorded
        finally:
            self._recorded = self._weights = None

    def _record(self, path: str, layer: AdaptedLayer, args: tuple[Tensor, ...]) -> None:
        if self._recorded is None:
            return
        current = layer.owner[0].current()
        if not current.enabled:
            return
        hidden = layer.hidden(args[0], layer.left_kernel(current.values))
        self._recorded[path] = channel_statistics(layer.tokens_first(hidden, args[0]), self._weights)


def batch_size(inputs: Any) -> int:
    """Return the number of examples of model inputs: a tensor (n, ...), or a mapping of such tensors.

    Example:
        >>> batch_size({"input_ids": torch.zeros(3, 7), "attention_mask": torch.ones(3, 7)})
        3
    """
    tensor = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return len(tensor)


def to_device(inputs: Any, device: torch.device | str) -> Any:
    """Return model inputs, a tensor or a mapping of tensors, on a device."""
    if isinstance(inputs, Tensor):
        return sent(inputs, device)
    return {name: sent(tensor, device) for name, tensor in inputs.items()}


def rows_of(inputs: Any, rows: Tensor | slice) -> Any:
    """Return some examples of model inputs, a tensor (n, ...) or a mapping of such tensors.

    Example:
        >>> rows_of(torch.arange(6).reshape(3, 2), torch.tensor([2, 0]))
        tensor([[4, 5],
                [0, 1]])
    """
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return {name: tensor[rows] for name, tensor in inputs.items()}
