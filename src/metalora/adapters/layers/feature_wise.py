"""A layer whose outputs are scaled and shifted, one by one.

Legend: b batch · o channels out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from metalora.adapters.layers.mergeable import MergeableLayer
from metalora.adapters.layers.output_layer import OutputLayer
from metalora.adapters.targets import TRANSPOSED
from metalora.tensornet.forms.feature_wise import FeatureWiseForm

if TYPE_CHECKING:
    from metalora.adapters.conditioning.condition import Values


class FeatureWiseLayer(OutputLayer, MergeableLayer):
    """z = base(x); y = z + scale . (gamma * z + beta), output by output.

    It is the base with the weight (1 + scale . gamma) W and the bias (1 + scale . gamma) b + scale . beta.

    Example:
        >>> import torch, metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("ia3", targets="0"))
        >>> _ = adapter.factors["0.gamma"].data.fill_(0.5)
        >>> torch.allclose(adapter.delta("0"), 0.5 * model[0].base.weight)
        True
    """

    not_a_lora = "scales its outputs, a change of full rank, so that no LoRA equals it; merge it instead"

    def changed(self, y: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """Return y + scale . (gamma * y + beta), (b, .., o) or (b, o, *positions)."""
        bias_change = self._bias_change()
        if bias_change is not None:
            y = y + self._along_channels(bias_change, y)
        gamma, beta = self._scale_and_shift(factors)
        change = y * self._along_channels(gamma, y)
        return y + (change if beta is None else change + self._along_channels(beta, y))

    def _scale_and_shift(self, factors: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return scale . gamma and scale . beta, each (b or 1, o); None for a method without shifts."""
        form = self.form
        assert isinstance(form, FeatureWiseForm), "every other form has another layer"
        shifts = [self.rows(name, factors) * self.bound.scale for name in form.shifts]
        return self.rows(form.scale, factors) * self.bound.scale, sum(shifts[1:], shifts[0]) if shifts else None

    def _bias_change(self) -> Tensor | None:
        """Return the change of the base's bias (1, o), which is scaled with it; None if biases are not trained."""
        slot = self.bound.bias_slot
        return None if slot is None else self.owner[0].biases[slot].reshape(1, -1)

    def _along_channels(self, row: Tensor, y: Tensor) -> Tensor:
        """Return a row (b or 1, o) with an axis of 1 for each axis of positions of y, in the type of y."""
        shape = [len(row), *[1] * (y.ndim - 1)]
        shape[self.axis] = row.shape[1]
        return row.reshape(shape).to(y.dtype)

    @property
    def changes_bias(self) -> bool:
        """True: the bias is scaled with the output."""
        return True

    def delta(self, values: Values | None) -> Tensor:
        """Return scale . gamma * W in the base weight's layout.

        Args:
            values: The values that differ by example; None if none do.

        Returns:
            (*base weight), or (b, *base weight) if gamma differs by example.

        Raises:
            RuntimeError: A factor differs by example and `values` is None.
            ValueError: The weight is quantised.
        """
        gamma, _ = self._scale_and_shift(self.bound.read(values))
        weight = self.base.weight
        if not weight.is_floating_point():
            raise ValueError(
                f"target {self.target.path!r}: Delta W is computed from the weight, and this one is {weight.dtype}: it "
                "must not be quantised"
            )
        shape = [len(gamma), *[1] * weight.ndim]
        shape[2 if self.target.kind in TRANSPOSED else 1] = gamma.shape[1]  # behind the axis of the examples
        dense = gamma.reshape(shape) * weight
        return dense if len(dense) > 1 else dense[0]

    def shift(self, values: Values | None) -> Tensor | None:
        """Return what is added to the base's bias for one condition (o,); None if there is neither a bias nor a beta.

        It is d + scale . (gamma * (bias + d) + beta), with d the change of the bias if biases are trained.
        """
        gamma, beta = self._scale_and_shift(self.bound.read(values))
        bias: Tensor | None = getattr(self.base, "bias", None)  # an embedding has no such attribute
        if bias is None:
            return None if beta is None else beta[0]
        change = self._bias_change()
        if change is None:
            return gamma[0] * bias + (0 if beta is None else beta[0])
        return change[0] + gamma[0] * (bias + change[0]) + (0 if beta is None else beta[0])
