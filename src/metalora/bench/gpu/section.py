"""A section of the GPU bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from metalora.bench.gpu.budget import Budget

Results = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A part of the bench, which becomes one row.

    Attributes:
        name: Its name.
        seconds: Its time budget.
        config: What it measures, as it stands in the row.
        run: Measures it within a budget.
    """

    name: str
    seconds: float
    config: dict[str, Any]
    run: Callable[[Budget], Results]


MakeSections = Callable[[bool], list[Section]]
"""Makes the sections, in real size, or in a tiny size for a dry run (True)."""
