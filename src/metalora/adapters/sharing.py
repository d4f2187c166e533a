"""What an adapter and its replicas have in common, next to their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Sharing:
    """One object for an adapter and all its replicas; a copy has its own.

    Attributes:
        swaps: How often `swap` has replaced the numbers of the parameters.
        has_replicas: Whether another model reads the same parameters and base weights.
    """

    swaps: int = 0
    has_replicas: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Sharing, (self.swaps,)  # a copy has no replicas
