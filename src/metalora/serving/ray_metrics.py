"""The numbers of a replica among those that Ray exports: `/metrics` would give those of any one replica."""

from __future__ import annotations

import threading
import time

from prometheus_client import CollectorRegistry
from ray.serve.metrics import Gauge

SECONDS = 5.0  # between two exports


class RayExport:
    """Copies the numbers of a registry to gauges of Ray, which adds the replica and the machine to each.

    Counters and histograms keep their names, after the prefix `ray_` that Ray puts before each, so that `rate` and
    `histogram_quantile` of Prometheus work as usual.

    Args:
        registry: The registry of the app.
    """

    def __init__(self, registry: CollectorRegistry):
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}

    def export(self) -> None:
        """Copy all numbers once."""
        for family in self._registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self._gauge(sample.name, family.documentation, tuple(sample.labels)).set(
                        sample.value, tags=sample.labels
                    )

    def run(self) -> None:
        """Copy all numbers again and again."""
        while True:
            self.export()
            time.sleep(SECONDS)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=text, tag_keys=labels)
        return self._gauges[name]


def export_to_ray(registry: CollectorRegistry) -> None:
    """Export the numbers of a registry to Ray as long as the process lives.

    Args:
        registry: The registry of the app.
    """
    threading.Thread(target=RayExport(registry).run, name="metalora metrics", daemon=True).start()
