"""Which handler serves which record, and the two ways to use the handlers of a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from metalora.adapters.mechanisms import composite, frozen_start, gated, magnitude, weight_start
from metalora.adapters.mechanisms.handler import Handler
from metalora.methods.records import Composite, GateCircuit, Gated, Magnitude, Mechanism, StartFromWeight
from metalora.tensornet.network import Network, Sizes

Binder = Callable[[Any, Network, Sizes], tuple[Network, Handler | None]]

BINDERS: dict[type[Mechanism], Binder] = {
    Composite: composite.bind,
    GateCircuit: frozen_start.bind,
    Gated: gated.bind,
    Magnitude: magnitude.bind,
    StartFromWeight: weight_start.bind,
}


def bind_mechanisms(
    mechanisms: Iterable[Mechanism], network: Network, sizes: Sizes
) -> tuple[Network, tuple[Handler, ...]]:
    """The handlers of a method's mechanisms at a target, in their order.

    Args:
        mechanisms: The records of the method.
        network: The network at the target.
        sizes: Sizes of its modes.

    Returns:
        The network as the mechanisms leave it, and the handlers.
    """
    handlers = []
    for record in mechanisms:
        binder = BINDERS.get(type(record))  # a record such as AnyRank has nothing to do at a target
        if binder is not None:
            network, handler = binder(record, network, sizes)
            if handler is not None:
                handlers.append(handler)
    return network, tuple(handlers)


def materialize_factors(handlers: Iterable[Handler], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors of a target's network from those that the target reads.

    Args:
        handlers: The handlers of the target.
        values: Name -> `(*modes)`, or `(batch, *modes)` for a factor that differs by example.
    """
    factors = dict(values)
    for handler in handlers:
        factors = handler.materialize(factors)
    return factors
