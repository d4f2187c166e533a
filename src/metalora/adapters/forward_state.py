"""All that lives while a forward runs, in one object, entered and left in one place."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metalora.adapters.conditioning.condition import Values
from metalora.adapters.layers.fused import SharedInputCache

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


@dataclass(eq=False)
class _UsingBlock:
    """A `using` block: its values, and what was active before it."""

    values: Values
    before: Values | None


class ForwardState(threading.local):
    """What an adapter keeps while a forward, a `using` or a `disabled` block runs; every thread has its own.

    A condition that one thread has entered is therefore not seen by another. A copy (pickle, deepcopy) starts empty.

    Attributes:
        enabled: False inside of `disabled`: the frozen base runs.
        values: The values of factors that differ by example, by key of the stored factor; None if none are active.
        beams: How many rows of the batch share one condition (`generate` with beams or several sequences).
        slices: Stacked factors, cut once a forward: key -> slices along the stacked axis. None outside of a forward.
        folded: Path -> scale . Mid . Right (k, o), folded for all targets of one plan together.
        shared: x Left of the last layer, for its siblings.
        pending_values: Values that are known, but are not to be used before the stem has run; otherwise None.

    Example:
        >>> state = ForwardState()
        >>> outer = state.begin_using({"C": torch.zeros(1, 2)})
        >>> inner = state.begin_using({"C": torch.ones(1, 2)})
        >>> state.end_using(inner)
        >>> state.values
        {'C': tensor([[0., 0.]])}
        >>> state.end_using(outer)
        >>> state.values is None
        True
    """

    def __init__(self) -> None:
        self.enabled = True
        self.values: Values | None = None
        self.beams = 1
        self.slices: dict[str, tuple[Tensor, ...]] | None = None
        self.folded: dict[str, Tensor] = {}
        self.shared = SharedInputCache()
        self.pending_values: Values | None = None
        self._times_disabled = 0  # a count, because `disabled` blocks may be nested
        self._using: list[_UsingBlock] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return ForwardState, ()

    # ---- blocks ----------------------------------------------------------------------------------------------------
    @property
    def using_values(self) -> Values | None:
        """The values of the innermost `using`, or None outside of one."""
        return self._using[-1].values if self._using else None

    def begin_using(self, values: Values) -> object:
        """Activate values until `end_using` is called with the token that is returned."""
        block = _UsingBlock(values, before=self.values)
        self._using.append(block)
        self.values = values
        return block

    def end_using(self, token: object) -> None:
        """End a `using`, and activate what was active before it.

        A generator that is left late ends a `using` that is not the innermost one: then what is active stays, and what
        was active before the ended block is active after the blocks inside of it.
        """
        ended = next(block for block in self._using if block is token)
        position = self._using.index(ended)
        del self._using[position]
        if position == len(self._using):
            self.values = ended.before
        elif self._using[position].before is ended.values:  # the block inside must not restore what has ended
            self._using[position].before = ended.before

    def begin_disabled(self) -> None:
        """Run the frozen base until `end_disabled` has been called as often."""
        self._times_disabled += 1
        self.enabled = False

    def end_disabled(self) -> None:
        """End a `disabled`."""
        self._times_disabled -= 1
        self.enabled = self._times_disabled == 0

    # ---- forwards --------------------------------------------------------------------------------------------------
    def begin_forward(self, adapter: Adapter) -> None:
        """Enter a forward of the model: cut stacked factors, and fold Mid and Right of targets of one plan."""
        self.shared.clear(running=True)
        self.slices = {key: adapter.stored_value(key).unbind(axis) for key, axis in adapter.stack_axes.items()}
        self.folded = {}
        if not torch.compiler.is_compiling() and adapter.fused:  # torch.compile sees the whole graph
            for fold in adapter.batched_folds():
                self.folded |= fold()

    def end_forward(self) -> None:
        """Leave a forward of the model: nothing of it stays."""
        self.shared.clear()
        self.folded, self.slices, self.pending_values = {}, None, None
        self.values = self.using_values
