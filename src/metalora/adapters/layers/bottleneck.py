"""A layer with a bottleneck behind it: two small maps of its output and an activation between them.

Legend: b batch · t token or position · h hidden · o channels out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, cast

import torch
from torch import Tensor, nn

from metalora.adapters.bound_target import BoundTarget
from metalora.adapters.kernels import Kernel
from metalora.adapters.layers.base_layer import BaseLayer
from metalora.adapters.plan import Form
from metalora.adapters.targets import Target
from metalora.methods.records import NonlinearBottleneck
from metalora.tensornet.forms.bottleneck import Bottleneck

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Values

CHANNELS = {"conv1d": -2, "conv2d": -3}  # the axis of the output that holds the channels; of other kinds the last
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


class BottleneckLayer(nn.Module):
    """z = base(x); y = z + scale . (activation(z Down + b) Up + c).

    No Delta W of the base's weight equals it, so it cannot be merged or exported. It has no `weight`: code that reads
    `.weight` fails loudly instead of ignoring the adapter.

    Args:
        base: The frozen layer.
        target: Its path and sizes.
        form: The planned bottleneck at the target.
        adapter: Owner of the factors; the layer holds a reference that is not registered.

    Example:
        >>> import metalora
        >>> model = nn.Sequential(nn.Linear(8, 16))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("loretta-adp", rank=2, targets="0"))
        >>> type(model[0]).__name__, model(torch.rand(3, 8)).shape
        ('BottleneckLayer', torch.Size([3, 16]))
    """

    original = original_bias = None  # it is never merged
    kernel: Kernel | None = None  # it has one way only

    def __init__(self, base: nn.Module, target: Target, form: Form, adapter: Adapter):
        super().__init__()
        self.base, self.target = cast(BaseLayer, base), target
        self.owner = (adapter,)  # a tuple, so that the adapter is registered once, by its owner
        self.axis = CHANNELS.get(target.kind, -1)
        self.bind(form)

    def bind(self, form: Form) -> None:
        """Resolve what the layer reads of its adapter, for this form of the adapter's layout."""
        assert isinstance(form, Bottleneck), "every other form has an AdaptedLayer"
        self.form = form
        self.bound = BoundTarget(self.owner[0], self.target.path, form)

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) through the bottleneck: (b, .., i) -> (b, .., o), in the base's own layout."""
        return self.add_update(x, self.base(x))

    def add_update(self, x: Tensor, y: Tensor, values: Values | None = None) -> Tensor:
        """Return y through the bottleneck, for an output y of the base that is known.

        Args:
            x: Input of the layer.
            y: base(x), (b, .., o) or the layout of a convolution.
            values: The values that differ by example; None: those of the running forward.

        Returns:
            The output of the layer, in the layout of y.

        Raises:
            ValueError: The conditions fit neither the batch nor the beams of `generate`.
        """
        state = self.owner[0].state
        if not state.enabled:
            return y
        values = state.values if values is None else values
        conditions = self.bound.num_conditions(values)
        single = y.ndim == -self.axis  # one example without a batch axis, such as (o,) or (o, *positions)
        y = y[None] if single else y
        if self.target.kind == "embedding" and len(y) == 1:  # positions, one row for all examples
            y = y.expand(conditions, *y.shape[1:])
        repeat = self._repeats(len(y), conditions)
        factors = self.bound.read(values, repeat=repeat)
        tokens = y.movedim(self.axis, -1)  # (b, .., o), whatever the layout of the base
        if self.bound.bias_slot is not None:  # before the bottleneck, which reads the base's output
            tokens = tokens + self.owner[0].biases[self.bound.bias_slot].to(tokens.dtype)
        change = self.change(tokens.reshape(len(y), -1, tokens.shape[-1]), factors).view_as(tokens)
        y = (tokens + self.bound.scale * change).movedim(-1, self.axis)
        return y[0] if single else y

    def _repeats(self, batch: int, conditions: int) -> int:
        """Return how many rows of the batch share one condition: the beams of `generate`, otherwise 1."""
        beams = self.owner[0].state.beams
        if conditions in (1, batch):
            return 1
        if conditions * beams != batch:
            raise ValueError(
                f"target {self.target.path!r}: the condition is for {conditions} examples, the layer got {batch}"
            )
        return beams

    def change(self, tokens: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """Compute activation(z Down + b) Up + c, without the scale.

        Args:
            tokens: The base's output z (b, t, o).
            factors: Factor -> its value.

        Returns:
            (b, t, o).
        """
        adapter, form = self.owner[0], self.form
        down = form.make_down([factors[name] for name in form.down]).to(tokens.dtype)
        up = form.make_up([factors[name] for name in form.up]).to(tokens.dtype)
        down, up = (matrix.flatten(-1 - form.hidden_modes, -2) for matrix in (down, up))  # (b?, h, o)
        h = tokens @ down.mT  # (b, t, o) -> (b, t, h)
        for bias in form.inner:
            h = h + self._bias(bias, factors, tokens.dtype)
        record = adapter.method.record(NonlinearBottleneck)
        assert record is not None, "only a method with this record has the form of a bottleneck"
        activation = ACTIVATIONS[record.activation]
        out: Tensor = adapter.rank_dropout(activation(h)) @ up
        for bias in form.outer:
            out = out + self._bias(bias, factors, tokens.dtype)
        return out

    def _bias(self, name: str, factors: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Return a bias as (b or 1, 1, h) or (b or 1, 1, o), to be added to (b, t, h) or (b, t, o)."""
        examples = len(factors[name]) if name in self.owner[0].per_example else 1
        return factors[name].reshape(examples, 1, -1).to(dtype)

    def delta(self, values: Values | None) -> NoReturn:
        """Refuse: there is no Delta W.

        Raises:
            ValueError: Always; it names the target and the method.
        """
        raise ValueError(
            f"target {self.target.path!r}: {self.owner[0].method.name} has an activation between its two maps, so no "
            "Delta W of a weight equals it: it cannot be merged or exported; keep it next to the base"
        )

    pair = delta
