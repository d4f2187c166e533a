"""What one layer reads of its adapter, resolved once: which tensors, at which index, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING

from torch import Tensor

from metalora.adapters.conditioning.rows import RowValues
from metalora.adapters.layout import FactorSlice, read_slice
from metalora.adapters.mechanisms import materialize_factors
from metalora.adapters.plan import Form, base_macs, macs_per_position
from metalora.tensornet.forms.bottleneck import Bottleneck
from metalora.tensornet.forms.feature_wise import FeatureWiseForm

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter
    from metalora.adapters.conditioning.condition import Values


# The adapter's module of learned factors. Its name is part of the keys of a state_dict and of saved PEFT folders, so it
# must never change.
LEARNED_MODULE = "owned"


@dataclass(frozen=True)
class FactorReader:
    """Where a factor's value comes from.

    Attributes:
        factor: Name of the factor in the method.
        slice: Key of the stored factor, and the index of it that the target reads.
        slot: Name of its parameter or buffer in the adapter's modules.
        per_example: True if the value differs by example, so that it comes from the condition.
        position: Position in the stack that a forward cuts once (one `unbind` instead of one `select` a layer), or
            None if the factor is not stacked.
        rest: What is left to index after that.
    """

    factor: str
    slice: FactorSlice
    slot: str
    per_example: bool
    position: int | None
    rest: FactorSlice


class BoundTarget:
    """The readers of one target's factors, the form of its network, and its scale as a number.

    Args:
        adapter: Owner of the factors.
        path: Path of the target.
        form: The planned form of the network at the target.
    """

    def __init__(self, adapter: Adapter, path: str, form: Form):
        target_layout = adapter.layout.targets[path]
        self.path, self.form = path, form
        self.target = target_layout.target
        self.scale = adapter.scale_of(path)
        self.handlers = target_layout.handlers
        self.bias_factors = target_layout.bias_factors
        bias_slot = slot_of(f"{path}.bias")
        self.bias_slot = bias_slot if bias_slot in adapter.biases else None
        self.has_biases = bool(self.bias_factors) or self.bias_slot is not None
        self.rescalers = tuple(handler for handler in self.handlers if handler.rescales())
        self.reads_as_stored = target_layout.reads_as_stored
        readers = {name: _reader(adapter, name, part) for name, part in target_layout.views.items()}
        self._readers = tuple(readers.values())
        self._adapter = (adapter,)  # a tuple: the adapter is registered once, by its owner
        self._by_name = readers
        self.per_example_key = next((r.slice.key for r in self._readers if r.per_example), None)
        self._selected: dict[tuple[str, ...], tuple[FactorReader, ...] | None] = {}
        # Siblings (one parent, equal slices of the stored factors) have one Left. A factor that has no slice is made by
        # a handler; the path then makes the key differ from every other.
        self.left_key = path.rpartition(".")[0], tuple(target_layout.views.get(f, path) for f in self.left_factors)
        self.shares_input = False  # True if a sibling has the same `left_key`; set once all targets are bound
        self.bind_costs()

    # ---- names -----------------------------------------------------------------------------------------------------
    @property
    def left_factors(self) -> tuple[str, ...]:
        """The factors of Left, in the order in which the form takes them."""
        return () if isinstance(self.form, Bottleneck | FeatureWiseForm) else tuple(self.form.left)

    @property
    def left_and_biases(self) -> tuple[str, ...]:
        """What is still read if scale * Mid Right has been folded for all targets together."""
        return (*self.left_factors, *self.bias_factors)

    # ---- when W + Delta W is cheaper ------------------------------------------------------------------------------
    def bind_costs(self) -> None:
        """Compute from how many positions on base(x) with W + Delta W costs fewer multiply-adds than the low-rank form.

        With T positions and s = kernel size x in, the low-rank form takes T k (s + o) multiply-adds more than the base
        in inference and 3 T k (s + o) in training; W + Delta W takes s k o in inference, and T s o + 3 s k o in
        training. A circuit has its own numbers in place of k (s + o) and s k o. None means never.
        """
        self.weight_first_from: tuple[int | None, int | None] = (None, None)  # (inference, training)
        self.base_macs, self.macs_per_position = base_macs(self.target), macs_per_position(self.form, self.target)
        if isinstance(self.form, Bottleneck | FeatureWiseForm):
            return
        dense, per_token = self.form.dense_macs, self.macs_per_position
        gain = 3 * per_token - self.base_macs
        training = floor(3 * dense / gain) + 1 if gain > 0 else None
        self.weight_first_from = floor(dense / per_token) + 1, training

    # ---- reading ---------------------------------------------------------------------------------------------------
    def num_conditions(self, values: Values | None) -> int:
        """The number of conditions that are active: 1 if no factor differs by example."""
        if self.per_example_key is None or values is None:
            return 1
        return len(values.rows) if type(values) is RowValues else values[self.per_example_key].shape[0]

    def read(self, values: Values | None, names: Sequence[str] | None = None, repeat: int = 1) -> dict[str, Tensor]:
        """Return the factors as the network takes them, by name: (*modes), or (b, *modes) if they differ by example.

        Args:
            values: The values that differ by example, by key of the stored factor; None if none do.
            names: Only these, if the target's factors are read as they are stored; None: all of them.
            repeat: How many rows of the batch one example has (the beams of `generate`).

        Raises:
            RuntimeError: A factor differs by example and `values` is None.
        """
        state = self._adapter[0].state
        if state.forward is not None and state.forward.caller is not None:
            state.forget_unfinished()  # its slices are those of factors that may have been replaced since
        readers: tuple[FactorReader, ...] = self._readers
        if names is not None and self.reads_as_stored:
            readers = tuple(self._by_name[name] for name in names if name in self._by_name)
        tensors = dict(zip((r.factor for r in readers), self.tensors(readers, values, repeat), strict=True))
        return tensors if self.reads_as_stored else materialize_factors(self.handlers, tensors)

    def tensors(self, readers: Sequence[FactorReader], values: Values | None, repeat: int = 1) -> list[Tensor]:
        """Return the tensors of some readers; written as one loop, since every layer runs it in every forward.

        Args:
            readers: The readers, in the order of the result.
            values: The values that differ by example, by key of the stored factor; None if none do.
            repeat: How many rows of the batch one example has (the beams of `generate`).

        Returns:
            One tensor a reader, with a leading axis (b, ..) if its factor differs by example.

        Raises:
            RuntimeError: A factor differs by example and `values` is None.
        """
        adapter = self._adapter[0]
        # Two dictionaries, without a way through Module.__getattr__
        learned = adapter._modules[LEARNED_MODULE]
        assert learned is not None
        forward = adapter.state.forward
        parameters, slices = learned._parameters, None if forward is None else forward.slices
        tensors = []
        for reader in readers:
            if reader.per_example:
                if values is None:
                    raise RuntimeError(
                        f"factor {reader.slice.key!r} differs by example and no condition is active: call the model "
                        "itself, pass condition=..., enter adapter.using(condition), or checkpoint with "
                        "metalora.checkpoint"
                    )
                value = read_slice(values[reader.slice.key], reader.slice, offset=1)  # (b, *modes)
                if repeat > 1:  # `generate` keeps the beams of one example next to each other
                    value = value.repeat_interleave(repeat, 0)
            elif reader.position is not None and slices is not None:
                value = slices[reader.slice.key][reader.position]
                if reader.rest.index:
                    value = read_slice(value, reader.rest)
            else:
                stored = parameters.get(reader.slot)  # None for a frozen factor, which is a buffer
                value = adapter.stored_value(reader.slice.key) if stored is None else stored
                if reader.slice.index:
                    value = read_slice(value, reader.slice)
            tensors.append(value)
        return tensors

    def select(self, names: tuple[str, ...]) -> tuple[FactorReader, ...]:
        """Return the readers of these factors, in this order."""
        return tuple(self._by_name[name] for name in names)


def _reader(adapter: Adapter, factor: str, part: FactorSlice) -> FactorReader:
    """Resolve where the value of a factor comes from.

    Args:
        adapter: Owner of the factors.
        factor: Name of the factor in the method.
        part: Key of the stored factor, and the index of it that the target reads.
    """
    axis = adapter.stack_axes.get(part.key)
    position = None if axis is None else dict(part.index).get(axis)
    rest = FactorSlice(part.key)
    if axis is not None and isinstance(position, int):
        # `unbind` removes the stacked axis, so that the axes behind it move forward by one.
        unstacked = [(indexed, index) for indexed, index in part.index if indexed != axis]
        remaining_index = [(indexed - (indexed > axis), index) for indexed, index in unstacked]
        rest = FactorSlice(part.key, tuple(remaining_index))
    per_example = factor in adapter.per_example
    stacked = position if isinstance(position, int) else None
    return FactorReader(factor, part, slot_of(part.key), per_example, stacked, rest)


def slot_of(key: str) -> str:
    """Return the name of a factor's parameter: a module's attribute has no dots.

    Example:
        >>> slot_of("encoder.layer.0.query.A")
        'encoder/layer/0/query/A'
    """
    return key.replace(".", "/")
