"""A layer whose update is a function of the base's output alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from metalora.adapters.bound_target import BoundTarget
from metalora.adapters.conditioning.rows import TokenValues, tokens_as_examples
from metalora.adapters.convolutions import POSITION_AXES
from metalora.adapters.kernels import Kernel
from metalora.adapters.layers.base_layer import BaseLayer
from metalora.adapters.layers.target_layer import TargetLayer
from metalora.adapters.plan import Form
from metalora.adapters.targets import Target

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Values


class OutputLayer(TargetLayer, ABC):
    """y = f(z) of the base's output z.

    Args:
        base: The frozen layer.
        target: Its path and sizes.
        form: The planned form of the network at the target.
        adapter: Owner of the factors; the layer holds a reference that is not registered.
    """

    not_a_lora = ""  # why no LoRA equals it, as the end of a sentence
    original: Tensor | None = None  # the base's weight while merged
    original_bias: Tensor | None = None
    kernel: Kernel | None = None  # it has one way only

    def __init__(self, base: nn.Module, target: Target, form: Form, adapter: Adapter):
        super().__init__()
        self.base, self.target = cast(BaseLayer, base), target
        self.owner = (adapter,)  # a tuple, so that the adapter is registered once, by its owner
        self.axis = -1 - POSITION_AXES.get(target.kind, 0)  # of the output, the one that holds the channels
        self.bind(form)

    def bind(self, form: Form) -> None:
        """Resolve what the layer reads of its adapter, for this form of the adapter's layout."""
        self.form = form
        self.bound = BoundTarget(self.owner[0], self.target.path, form)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return f(base(x)): (b, .., i) -> (b, .., o), in the base's own layout.

        Args:
            x: The input.
            *args: Further arguments of the base.
            **kwargs: The same by name.
        """
        return self.add_update(x, self.base(x, *args, **kwargs))

    def add_update(self, x: Tensor, y: Tensor, values: Values | None = None) -> Tensor:
        """Return f(y), for an output y of the base that is known.

        Args:
            x: Input of the layer.
            y: base(x), (b, .., o) or the layout of a convolution.
            values: The values that differ by example; None: those of the running forward.

        Returns:
            The output of the layer, in the layout of y.

        Raises:
            ValueError: The conditions fit neither the batch nor the beams of `generate`.
        """
        current = self.owner[0].current()
        if not current.enabled or self.original is not None:
            return y
        values = current.values if values is None else values
        if type(values) is TokenValues:
            y, exchanged = tokens_as_examples(y, values, 1, self.target.path)
            updated = self.changed(y, self.bound.read(values))
            return updated.transpose(0, 1) if exchanged else updated
        conditions = self.bound.num_conditions(values)
        single = y.ndim == -self.axis  # one example without a batch axis, such as (o,) or (o, *positions)
        y = y[None] if single else y
        if self.target.kind == "embedding" and len(y) == 1:  # positions, one row for all examples
            y = y.expand(conditions, *y.shape[1:])
        y = self.changed(y, self.bound.read(values, repeat=self._repeats(len(y), conditions)))
        return y[0] if single else y

    def _repeats(self, batch: int, conditions: int) -> int:
        """Return how many rows of the batch share one condition: the beams of `generate`, otherwise 1."""
        beams = self.owner[0].beams
        if conditions in (1, batch):
            return 1
        if conditions * beams != batch:
            raise ValueError(
                f"target {self.target.path!r}: the condition is for {conditions} examples, the layer got {batch}"
            )
        return beams

    def rows(self, name: str, factors: dict[str, Tensor]) -> Tensor:
        """Return a factor outside of a contraction as (b or 1, n)."""
        return factors[name].flatten(1) if name in self.owner[0].per_example else factors[name].reshape(1, -1)

    @abstractmethod
    def changed(self, y: Tensor, factors: dict[str, Tensor]) -> Tensor:
        """Return f(y) in the layout of y.

        Args:
            y: The base's output with a batch axis, (b, .., o) or (b, o, *positions).
            factors: Factor -> its value.
        """
