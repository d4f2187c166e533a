"""All that lives while a forward runs, in one object, entered and left in one place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metalora.adapters.blocks import is_running
from metalora.adapters.conditioning.condition import Values
from metalora.adapters.layers.fused import SharedInputCache, is_transformed

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


@dataclass
class CastFactors:
    """Factors in the type of a 16-bit base.

    Attributes:
        lefts: Path -> Left (k, i, *kernel).
        ups: Path -> scale . Mid . Right (k, o), if neither differs by example.
        rights: Path -> scale . Right (k', o), if Mid differs by example.
    """

    lefts: dict[str, Tensor] = field(default_factory=dict)
    ups: dict[str, Tensor] = field(default_factory=dict)
    rights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ValueFactors:
    """Factors that depend on values, those for which it pays to make them for all targets together.

    Attributes:
        values: The values that differ by example.
        mids: Path -> Mid of each example, (b, k, k') or (b, k).
        ups: Path -> scale . Mid . Right (k, o), if there is one condition.
    """

    values: Values
    mids: dict[str, Tensor]
    ups: dict[str, Tensor]


@dataclass(eq=False)
class Forward:
    """A forward of the model, or of a part of it whose values are known.

    Attributes:
        outer: The forward in which this one runs; None for the outermost.
        enabled: False if the frozen base runs.
        depth: How many blocks were entered when it began: a `using` or `disabled` that is entered later has priority.
        values: The values of factors that differ by example, by key of the stored factor; None if there are none.
        given: Values that a forward of the whole model inside of this one takes; None: it has to find its own.
        pending_values: Values that are known, but are not to be used before the stem has run; otherwise None.
        slices: Stacked factors, cut once a forward: key -> slices along the stacked axis.
        folded: Path -> scale . Mid . Right (k, o), folded for all targets of one plan together.
        cast: Factors in the type of a 16-bit base, cast for all targets together; None: every layer casts its own.
        of_values: Factors that depend on the values, made for all targets together; None before a target has asked.
        recording: What the recorder had recorded of the outer forward.
        caller: The frame that will end it; None if it ends whatever happens.
    """

    outer: Forward | None
    enabled: bool
    depth: int
    values: Values | None = None
    given: Values | None = None
    pending_values: Values | None = None
    slices: dict[str, tuple[Tensor, ...]] | None = None
    folded: dict[str, Tensor] = field(default_factory=dict)
    cast: CastFactors | None = None
    of_values: ValueFactors | None = None
    recording: Any = None
    caller: FrameType | None = None


class ForwardState(threading.local):
    """The forwards of one adapter that run in this thread; every thread has its own. A copy has none.

    A forward has no `await` and no `yield`, so a thread is enough here. Blocks that outlive one (`using`, `disabled`)
    are in `metalora.adapters.blocks`.

    Attributes:
        forward: The innermost forward that runs; None outside of one.
        shared: x Left of the last layer, for its siblings.

    Example:
        >>> state = ForwardState()
        >>> outer, inner = state.enter(enabled=True, depth=0), state.enter(enabled=True, depth=0)
        >>> inner.outer is outer
        True
        >>> state.leave()
        >>> state.forward is outer
        True
    """

    def __init__(self) -> None:
        self.forward: Forward | None = None
        self.shared = SharedInputCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return ForwardState, ()

    def enter(self, enabled: bool, depth: int, caller: FrameType | None = None) -> Forward:
        """Enter a forward of the model; `begin` makes it ready, if the adapter takes part in it."""
        self.forward = Forward(self.forward, enabled, depth, caller=caller)
        return self.forward

    def begin(self, adapter: Adapter) -> None:
        """Make the entered forward ready: cut stacked factors, and fold Mid and Right of targets of one plan."""
        forward = self.forward
        assert forward is not None, "`enter` comes before `begin`"
        self.shared.clear(running=True)
        forward.slices = {key: adapter.stored_value(key).unbind(axis) for key, axis in adapter.stack_axes.items()}
        if not torch.compiler.is_compiling() and adapter.fused:  # torch.compile sees the whole graph
            for fold in adapter.batched_folds():
                forward.folded |= fold()
            if not is_transformed():
                forward.cast = adapter.cast_once()()

    def leave(self) -> None:
        """Leave the innermost forward: nothing of it stays, and the outer one goes on as it was."""
        assert self.forward is not None, "`enter` comes before `leave`"
        self.forward = self.forward.outer
        self.shared.clear(running=self.forward is not None)

    def forget_unfinished(self) -> Forward | None:
        """Return the forward that runs, after forgetting those that an exception has ended without `leave`."""
        while self.forward is not None and self.forward.caller is not None and not is_running(self.forward.caller):
            self.leave()
        return self.forward

    @contextlib.contextmanager
    def part(self, enabled: bool, depth: int, values: Values | None = None) -> Iterator[None]:
        """Run a part of the model with these values, or the frozen base; the cut factors stay those of the forward."""
        outer = self.forward
        part = Forward(outer, enabled, depth, values, given=values)
        if outer is not None:
            part.slices, part.folded = outer.slices, outer.folded
            part.cast = outer.cast
        self.forward = part
        try:
            yield
        finally:
            self.forward = outer
