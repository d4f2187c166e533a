"""A layer with a bottleneck behind it: two small maps of its output and an activation between them.

Legend: b batch · t token or position · h hidden · o channels out.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from metalora.adapters.layers.output_layer import OutputLayer
from metalora.methods.records import NonlinearBottleneck
from metalora.tensornet.forms.bottleneck import Bottleneck

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu}


class BottleneckLayer(OutputLayer):
    """z = base(x); y = z + scale . (activation(z Down + b) Up + c).

    No Delta W of the base's weight equals it, so it cannot be merged or exported.

    Example:
        >>> import metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("loretta-adp", rank=2, targets="0"))
        >>> type(model[0]).__name__, model(torch.rand(3, 8)).shape
        ('BottleneckLayer', torch.Size([3, 16]))
    """

    not_a_lora = "is not linear, so that no LoRA equals it"

    def changed(self, y: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """Return y through the bottleneck, (b, .., o) or (b, o, *positions)."""
        tokens = y.movedim(self.axis, -1)  # (b, .., o), whatever the layout of the base
        if self.bound.bias_slot is not None:  # before the bottleneck, which reads the base's output
            tokens = tokens + self.owner[0].biases[self.bound.bias_slot].to(tokens.dtype)
        flat = tokens.reshape(len(y), prod(tokens.shape[1:-1]), tokens.shape[-1])  # without -1: a batch may be empty
        change = self.change(flat, factors).view_as(tokens)
        return (tokens + self.bound.scale * change).movedim(-1, self.axis)

    def change(self, tokens: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """Compute activation(z Down + b) Up + c, without the scale.

        Args:
            tokens: The base's output z (b, t, o).
            factors: Factor -> its value.

        Returns:
            (b, t, o).
        """
        adapter, form = self.owner[0], self.form
        assert isinstance(form, Bottleneck), "every other form has another layer"
        down = form.make_down([factors[name] for name in form.down]).to(tokens.dtype)
        up = form.make_up([factors[name] for name in form.up]).to(tokens.dtype)
        down, up = (matrix.flatten(-1 - form.hidden_modes, -2) for matrix in (down, up))  # (b?, h, o)
        h = tokens @ down.mT  # (b, t, o) -> (b, t, h)
        for bias in form.inner:
            h = h + self.rows(bias, factors)[:, None].to(tokens.dtype)
        record = adapter.method.record(NonlinearBottleneck)
        assert record is not None, "only a method with this record has the form of a bottleneck"
        activation = ACTIVATIONS[record.activation]
        out: Tensor = adapter.rank_dropout(activation(h)) @ up
        for bias in form.outer:
            out = out + self.rows(bias, factors)[:, None].to(tokens.dtype)
        return out

    def has_one_weight(self) -> bool:
        """Return False: there is no Delta W."""
        return False

    def delta(self, values: Values | None) -> NoReturn:
        """Refuse: there is no Delta W.

        Raises:
            ValueError: Always; it names the target and the method.
        """
        raise ValueError(
            f"target {self.target.path!r}: {self.owner[0].method.name} has an activation between its two maps, so no "
            "Delta W of a weight equals it: it cannot be merged or exported; keep it next to the base"
        )

    pair = shift = delta
