"""How many requests a service answers in a second, how soon, and what they cost it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from serving_load.connections import Connections
from serving_load.process import ServedProcess, own_cpu_seconds

Figures = dict[str, object]


class Meter:
    """Latencies and statuses of the requests of one measurement, and the CPU time of both sides.

    Args:
        service: The process that is measured.
    """

    def __init__(self, service: ServedProcess):
        self.service = service
        self.milliseconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self._begun = time.perf_counter(), service.cpu_seconds(), own_cpu_seconds()

    def add(self, begun: float, status: int) -> None:
        """Count a reply to a request that was due at a time of `time.perf_counter`."""
        self.milliseconds.append(1000 * (time.perf_counter() - begun))
        self.statuses[status] += 1

    def figures(self) -> Figures:
        """Return the figures of the measurement, which ends now."""
        begun, service_cpu, own_cpu = self._begun
        seconds, count = time.perf_counter() - begun, max(1, len(self.milliseconds))
        p50, p99 = np.percentile(self.milliseconds or [0.0], [50, 99])
        errors = {str(status): number for status, number in self.statuses.items() if not 200 <= status < 300}
        return {
            "requests": len(self.milliseconds),
            "requests_per_second": round(len(self.milliseconds) / seconds, 1),
            "p50_ms": round(float(p50), 2),
            "p99_ms": round(float(p99), 2),
            "service_cpu_ms_per_request": round(1000 * (self.service.cpu_seconds() - service_cpu) / count, 3),
            "client_cpu_ms_per_request": round(1000 * (own_cpu_seconds() - own_cpu) / count, 3),
            "rss_mb": round(self.service.rss_mb(), 1),
            "errors": errors,
        }


async def saturate(service: ServedProcess, request: Callable[[int], bytes], seconds: float, clients: int) -> Figures:
    """Let clients send one request after the other, and return the figures.

    Args:
        service: The service.
        request: The request of a number.
        seconds: For how long.
        clients: How many send at the same time.
    """
    numbers = iter(range(2**62))
    meter = Meter(service)
    end = time.perf_counter() + seconds

    async with Connections(service.address, clients) as connections:

        async def client() -> None:
            while (begun := time.perf_counter()) < end:
                reply = await connections.send(request(next(numbers)))
                meter.add(begun, reply.status)

        await asyncio.gather(*(client() for _ in range(clients)))
    return meter.figures()


async def offer(
    service: ServedProcess, request: Callable[[int], bytes], rate: float, seconds: float, clients: int = 256
) -> Figures:
    """Send requests at a rate, whether they are answered or not, and return the figures.

    A latency counts from the time at which its request was due, so that a service that is late is seen to be late.

    Args:
        service: The service.
        request: The request of a number.
        rate: Requests in a second.
        seconds: For how long.
        clients: Most requests that are under way.
    """
    async with Connections(service.address, clients) as connections:
        meter = Meter(service)
        first = time.perf_counter()

        async def one(number: int) -> None:
            reply = await connections.send(request(number))
            meter.add(first + number / rate, reply.status)

        async with asyncio.TaskGroup() as group:
            for number in range(max(1, int(rate * seconds))):
                await asyncio.sleep(max(0.0, first + number / rate - time.perf_counter()))
                group.create_task(one(number))
        return meter.figures() | {"offered_per_second": round(rate, 1)}
