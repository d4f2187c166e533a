"""The settings of the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from metalora._util.number_range import Range
from metalora.config import Configuration


@dataclass(frozen=True)
class ServingConfig(Configuration):
    """The settings of the service.

    Attributes:
        max_rows: Largest number of inputs in one forward pass of the network.
        max_wait_ms: How long a batch waits for further requests, in milliseconds.
        max_queue_rows: Inputs that may wait, and inputs of one request; with more waiting the service answers 429.
        hot_mb: Memory for tasks that were used last, in megabytes.
        dtype: Precision of the network.
        threads: Threads of the computation; None: those of PyTorch.
        max_tasks: Largest number of tasks of a tenant.
        max_examples: Largest number of labelled inputs of a task.
        max_request_mb: Largest request, in megabytes.
        max_pixels: Largest picture, in pixels.
        task_bytes: Largest size of the readout of a stored task, in bytes; a larger one is made compact.
        deadline_s: Time for a request, in seconds.
        stop_s: Time to finish accepted requests when the service stops, in seconds.
        readapt: Make the tasks of older learners anew with the current one, in the background.
        cors_origins: Origins of web pages that may call the service; none by default.
    """

    max_rows: Annotated[int, Range(least=1)] = 64
    max_wait_ms: Annotated[float, Range(least=0)] = 0.0
    max_queue_rows: Annotated[int, Range(least=1)] = 1024
    hot_mb: Annotated[int, Range(least=1)] = 32
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    threads: Annotated[int | None, Range(least=1)] = None
    max_tasks: Annotated[int, Range(least=1)] = 1000
    max_examples: Annotated[int, Range(least=2)] = 1000
    max_request_mb: Annotated[int, Range(least=1)] = 32
    max_pixels: Annotated[int, Range(least=1)] = 40_000_000
    task_bytes: Annotated[int, Range(least=1000)] = 20_000
    deadline_s: Annotated[float, Range(above=0)] = 30.0
    stop_s: Annotated[float, Range(least=0)] = 30.0
    readapt: bool = True
    cors_origins: tuple[str, ...] = ()
