"""Use other factors in an adapter for a while, without another thread running it at this time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from metalora.adapters.adapter import Adapter


class FactorUse:
    """Who runs an adapter now: any number of threads with its own factors, or one thread with others.

    A copy is used by nobody.

    Args:
        adapter: The adapter; None: there is nothing to wait for.

    Example:
        >>> import torch, metalora
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> adapter = metalora.attach(model, metalora.AdapterConfig("lora", rank=1, targets="0"))
        >>> use = FactorUse(adapter)
        >>> with use.others({"0.B": torch.ones(1, 4)}), use.own():
        ...     print(adapter.factors["0.B"].data)
        tensor([[1., 1., 1., 1.]])
        >>> adapter.factors["0.B"].data
        tensor([[0., 0., 0., 0.]])
    """

    def __init__(self, adapter: Adapter | None):
        self.adapter = adapter
        self._changed = threading.Condition()
        self._running = 0  # threads that run the adapter with its own factors
        self._swapped_by: int | None = None  # the thread that has put others in

    def __reduce__(self) -> tuple[Any, ...]:
        return FactorUse, (self.adapter,)

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Run the adapter inside, after all others have taken their factors out."""
        with self._changed:
            inside = self._swapped_by == threading.get_ident()
            if not inside:
                self._changed.wait_for(lambda: self._swapped_by is None)
                self._running += 1
        try:
            yield
        finally:
            if not inside:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    @contextlib.contextmanager
    def others(self, factors: Mapping[str, Tensor] | None) -> Iterator[None]:
        """Run the adapter inside with other factors, alone, and put its own back at the end.

        Args:
            factors: Key -> factor, of the shape of the adapter's; None: the adapter's own.
        """
        if self.adapter is None or factors is None:
            yield
            return
        with self._changed:
            inside = self._swapped_by == threading.get_ident()
            if not inside:
                self._changed.wait_for(lambda: self._swapped_by is None and self._running == 0)
                self._swapped_by = threading.get_ident()
        learned = self.adapter.learned
        own = {key: learned[key].data for key in factors}
        try:
            for key, value in factors.items():
                learned[key].data = value
            yield
        finally:
            for key, value in own.items():
                learned[key].data = value
            if not inside:
                with self._changed:
                    self._swapped_by = None
                    self._changed.notify_all()
