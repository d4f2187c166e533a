"""Which tenant each request of a continuous run belongs to, and the values of the tokens of one of its steps."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from metalora.adapters.conditioning.condition import Condition, Values
from metalora.adapters.conditioning.condition_table import ConditionTable
from metalora.adapters.continuous.tenants import Tenant

CHILD = "__child#"  # what transformers puts between the name of a request and the number of a further sequence of it
SPARE = 64  # tenants without a request in a step whose values stay, since their next step may come soon


@dataclass(frozen=True, eq=False)
class _Owned:
    """That a request belongs to a tenant; a later request of the same name is another object."""

    tenant: Tenant


class TenantRequests:
    """The tenants of the requests that wait or run; any thread may add some.

    Example:
        >>> import torch
        >>> requests = TenantRequests()
        >>> requests.add("a", Tenant({"C": torch.ones(1, 2)}, (1,)))
        >>> requests.tenant("a").salt, requests.tenant("a__child#0").salt
        ((1,), (1,))
        >>> requests.tenant("b")
        Traceback (most recent call last):
        ValueError: request 'b' has no condition: add it with manager.add_request, with condition= or task_ids=
    """

    def __init__(self) -> None:
        self._owned: dict[str, _Owned] = {}
        self._running: dict[str, _Owned] = {}
        self._lock = threading.Lock()

    def add(self, name: str, tenant: Tenant) -> None:
        """Say which tenant a request belongs to, before the run knows it.

        Raises:
            ValueError: A request of this name waits or runs: the run would mix the two.
        """
        with self._lock:
            if name in self._owned:
                raise ValueError(f"request {name!r} waits or runs already: give every request a name of its own")
            self._owned[name] = _Owned(tenant)

    def discard(self, name: str) -> None:
        """Forget a request that the run has not taken."""
        with self._lock:
            self._owned.pop(name, None)

    def tenant(self, name: str) -> Tenant:
        """Return the tenant of a request, or of a further sequence (`num_return_sequences`) of one.

        Raises:
            ValueError: Nobody has said which tenant it belongs to.
        """
        with self._lock:
            return self._of(name).tenant

    def _of(self, name: str) -> _Owned:
        owned = self._owned.get(name)
        if owned is None and CHILD in name:  # it lives on when its parent has ended
            owned = self._owned.get(name.rpartition(CHILD)[0])
            if owned is not None:
                self._owned[name] = _Owned(owned.tenant)
        if owned is None:
            raise ValueError(
                f"request {name!r} has no condition: add it with manager.add_request, with condition= or task_ids="
            )
        return owned

    def keep_only(self, names: Collection[str]) -> None:
        """Forget the requests that ran before and are not among these names, which wait or run now."""
        with self._lock:
            running = {name: self._of(name) for name in names}
            for name in self._running.keys() - running.keys():
                if self._owned.get(name) is self._running[name]:  # not a new request of the same name
                    del self._owned[name]
            self._running = {name: self._owned[name] for name in running}


class TenantTable:
    """The values of the tenants of a run in one matrix, so that a step takes those of all of its tokens at once.

    Example:
        >>> import torch
        >>> table = TenantTable()
        >>> one, two = (Tenant({"C": torch.full((1, 1), float(number))}, (number,)) for number in (1, 2))
        >>> table.take([one, two, one], tokens=[2, 1, 1])["C"].flatten().tolist()
        [1.0, 1.0, 2.0, 1.0]
    """

    def __init__(self) -> None:
        self._table = ConditionTable()
        self._numbers: dict[tuple[int, ...], int] = {}  # salt of a tenant -> its number in the table

    def take(self, tenants: Sequence[Tenant], tokens: Sequence[int]) -> Values:
        """Return the values of the tokens of one step.

        Args:
            tenants: The tenant of each request.
            tokens: How many tokens each request has in this step.

        Returns:
            Key of a stored factor -> its values, (tokens, *factor shape).
        """
        present = {tenant.salt: tenant for tenant in tenants}
        if len(self._numbers) > 2 * len(present) + SPARE:
            self._keep_only(present)
        for salt in present.keys() - self._numbers.keys():
            values = dict(present[salt].values)
            first = next(iter(values.values()))
            self._numbers[salt] = self._table.add(Condition(values, first.new_zeros(1, 0), first.new_zeros(())))
        numbers = [self._numbers[tenant.salt] for tenant in tenants]
        pairs = zip(numbers, tokens, strict=True)
        return self._table.take([number for number, count in pairs for _ in range(count)]).values

    def _keep_only(self, salts: Collection[tuple[int, ...]]) -> None:
        """Forget the values of all other tenants."""
        for salt in self._numbers.keys() - salts:
            self._table.remove(self._numbers.pop(salt))
