"""Continuous batching of transformers: the requests of many tenants in one run, each under its own condition."""

from metalora.adapters.continuous.guard import (
    generate_batch,
    guard_continuous_batching,
    unguard_continuous_batching,
)

__all__ = ["generate_batch", "guard_continuous_batching", "unguard_continuous_batching"]
