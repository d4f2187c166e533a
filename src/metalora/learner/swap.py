"""Use other factors in an adapter for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from metalora.adapters.adapter import Adapter


@contextmanager
def factors_in_use(adapter: Adapter | None, factors: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Run the block with other factors in an adapter, and put its own back after it.

    Args:
        adapter: The adapter.
        factors: Key -> factor, of the shape of the adapter's; None: the adapter's own.
    """
    if adapter is None or factors is None:
        yield
        return
    own = {key: adapter.learned[key].data for key in factors}
    try:
        for key, value in factors.items():
            adapter.learned[key].data = value
        yield
    finally:
        for key, value in own.items():
            adapter.learned[key].data = value
