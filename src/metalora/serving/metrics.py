"""What the service counts, for Prometheus; nothing is counted by tenant."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("route", "status")
        self.requests = Counter("metalora_requests", "Requests", labels, registry=registry)
        self.request_seconds = Histogram(
            "metalora_request_seconds", "Seconds of a request", ("route",), buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram("metalora_batch_rows", "Inputs of a batch", buckets=ROWS, registry=registry)
        self.model_seconds = Counter("metalora_model_seconds", "Seconds of the network in batches", registry=registry)
        self.adapt_seconds = Histogram(
            "metalora_adapt_seconds", "Seconds of an adaptation", buckets=SECONDS, registry=registry
        )
        self.hot_hits = Counter("metalora_hot_task_hits", "Tasks that were in memory", registry=registry)
        self.hot_misses = Counter("metalora_hot_task_misses", "Tasks that were read from the store", registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(route, str(status)).inc()
        self.request_seconds.labels(route).observe(seconds)

    def batch(self, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_rows.observe(rows)
        self.model_seconds.inc(seconds)

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a number that is read when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all numbers as Prometheus reads them."""
        return generate_latest(self.registry)
