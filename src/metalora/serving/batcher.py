"""A queue in which tenants take turns: batches of rows, back-pressure, no work for those who no longer wait."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import NamedTuple

from metalora.serving.errors import ServiceError

SMOOTHING = 0.1  # of the mean time of a row
FIRST_GUESS = 0.01  # seconds of a row, before anything was measured


class Waiting:
    """Rows of one request that wait to be computed.

    Args:
        tenant: Whose they are.
        rows: How many they are.

    Attributes:
        taken: How many of them were given out.
    """

    def __init__(self, tenant: int, rows: int):
        self.tenant, self.rows, self.taken = tenant, rows, 0


class Slice(NamedTuple):
    """Rows `start` to `stop` of a request."""

    request: Waiting
    start: int
    stop: int


class FairQueue:
    """Requests of many tenants, who take turns; it may be used from any thread.

    A batch has equal shares of the tenants that wait, as far as they have rows. A request that does not fit into one
    batch is split over several.

    Args:
        most_rows: Rows that may wait; a larger request is taken if nothing else waits.

    Example:
        >>> queue = FairQueue(100)
        >>> for tenant, rows in ((1, 10), (1, 2), (2, 3)):
        ...     queue.put(Waiting(tenant, rows))
        >>> [(part.request.tenant, part.start, part.stop) for part in queue.take(8)]
        [(1, 0, 5), (2, 0, 3)]
    """

    def __init__(self, most_rows: int):
        self.most_rows = most_rows
        self._tenants: OrderedDict[int, deque[Waiting]] = OrderedDict()  # the first one has the next turn
        self._rows = 0
        self._announced = 0  # rows that come soon
        self._seconds_of_row = FIRST_GUESS
        self._closed = False
        self._changed = threading.Condition()

    @property
    def rows(self) -> int:
        """Number of rows that wait."""
        return self._rows

    @contextlib.contextmanager
    def announced(self, rows: int) -> Iterator[None]:
        """Keep room for rows that are being prepared, and put at the end of the block.

        Args:
            rows: How many they are.

        Raises:
            ServiceError: Too many rows wait, or the queue is closed; it says when to try again.
        """
        with self._changed:
            self._check_room(rows)
            self._announced += rows
        try:
            yield
        finally:
            with self._changed:
                self._announced -= rows

    def _check_room(self, rows: int) -> None:
        if self._closed:
            raise ServiceError("stopping", "the service is stopping", retry_after=1)
        present = self._rows + self._announced
        if present and present + rows > self.most_rows:
            message = f"{present} inputs are waiting; try again later"
            raise ServiceError("busy", message, retry_after=max(1, math.ceil(present * self._seconds_of_row)))

    def put(self, request: Waiting) -> None:
        """Add a request; ServiceError as `announced`."""
        with self._changed:
            self._check_room(request.rows)
            self._tenants.setdefault(request.tenant, deque()).append(request)
            self._rows += request.rows
            self._changed.notify()

    def discard(self, request: Waiting) -> None:
        """Remove what is left of a request, whose client no longer waits; nothing happens if it was all given out."""
        with self._changed:
            requests = self._tenants.get(request.tenant, ())
            if request in requests:
                self._remove(request)

    def take(self, most_rows: int, wait: float = 0.0) -> list[Slice]:
        """Wait for requests and return a batch of at most `most_rows` rows; an empty list if the queue is closed.

        Args:
            most_rows: Largest number of rows.
            wait: Seconds to wait for further rows, if the batch would not be full.
        """
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._rows or self._closed)
                if wait and self._rows:
                    self._changed.wait_for(lambda: self._rows >= most_rows or self._closed, wait)
                if self._rows or self._closed:  # what was there may have been discarded
                    return self._batch(most_rows)

    def take_request(self) -> Waiting | None:
        """Wait for a request and return it whole; None if the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._rows or self._closed)
            if not self._rows:
                return None
            tenant, requests = next(iter(self._tenants.items()))
            request = requests[0]
            self._give(request, request.rows)
            if tenant in self._tenants:
                self._tenants.move_to_end(tenant)
            return request

    def measured(self, rows: int, seconds: float) -> None:
        """Take into account how long rows have taken, for the estimate of a full queue."""
        self._seconds_of_row += SMOOTHING * (seconds / rows - self._seconds_of_row)

    def close(self) -> None:
        """Take no more requests; those that wait are still given out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _batch(self, most_rows: int) -> list[Slice]:
        """Return a batch: equal shares first, then what is left of the room to those whose turn it is."""
        slices: list[Slice] = []
        room = most_rows
        while room and self._tenants:
            share = max(1, room // len(self._tenants))
            for tenant in list(self._tenants):
                given = self._rows_of(tenant, min(share, room))
                room -= sum(part.stop - part.start for part in given)
                slices += given
                if not room:
                    break
        return _joined(slices)

    def _rows_of(self, tenant: int, most_rows: int) -> list[Slice]:
        """Take up to `most_rows` rows of a tenant, whose next turn is after that of all others."""
        slices: list[Slice] = []
        while most_rows and tenant in self._tenants:
            slices.append(self._give(self._tenants[tenant][0], most_rows))
            most_rows -= slices[-1].stop - slices[-1].start
        if tenant in self._tenants:
            self._tenants.move_to_end(tenant)
        return slices

    def _give(self, request: Waiting, most_rows: int) -> Slice:
        start = request.taken
        request.taken = min(start + most_rows, request.rows)
        self._rows -= request.taken - start
        if request.taken == request.rows:
            self._remove(request)
        return Slice(request, start, request.taken)

    def _remove(self, request: Waiting) -> None:
        requests = self._tenants[request.tenant]
        requests.remove(request)
        self._rows -= request.rows - request.taken
        request.taken = request.rows
        if not requests:
            del self._tenants[request.tenant]


def _joined(slices: list[Slice]) -> list[Slice]:
    """Return slices with those of one request, which follow each other, as one."""
    joined: dict[int, Slice] = {}
    for part in slices:
        before = joined.get(id(part.request))
        joined[id(part.request)] = part if before is None else before._replace(stop=part.stop)
    return list(joined.values())


class Turns:
    """Lets a lane of low priority wait while a lane of high priority works, but never for long.

    Args:
        longest: The longest time to wait at once, in seconds.

    Example:
        >>> turns = Turns(longest=0.01)
        >>> with turns.first():
        ...     seconds = turns.wait()  # returns after 0.01 s
    """

    def __init__(self, longest: float):
        self.longest = longest
        self._busy = 0
        self._changed = threading.Condition()

    def first(self) -> Turns:
        """Return a context for work of high priority."""
        return self

    def __enter__(self) -> None:
        with self._changed:
            self._busy += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def wait(self) -> float:
        """Wait until no work of high priority is going on, but not longer than `longest`; return the seconds."""
        start = time.monotonic()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, self.longest)
        return time.monotonic() - start
