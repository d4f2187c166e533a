"""The Triton kernels of a linear layer alone, with several sizes of their blocks, beside PyTorch's products.

Each case is captured as one graph of many calls, so that only what the card computes is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from metalora.adapters.triton_kernels.available import unavailable
from metalora.bench.device import bench_device
from metalora.bench.gpu.budget import Budget, OutOfTime
from metalora.bench.gpu.graphed import captured
from metalora.bench.gpu.laws import relative_error
from metalora.bench.gpu.many_tenants import timed
from metalora.bench.gpu.measure import describe_error, measure
from metalora.bench.gpu.section import Results, Section

TORCH, DEFAULT = "torch", "triton"
BLOCKS = ((16, 64, 3), (16, 128, 2), (16, 256, 3), (32, 128, 3), (64, 64, 2), (64, 128, 3))  # rows, channels, stages
ROUNDS = 11


@dataclass(frozen=True)
class Shape:
    """The sizes of a layer, and how many calls make a graph."""

    rows: int
    channels: int
    rank: int
    calls: int


SHAPES = (Shape(8 * 128, 768, 8, 50), Shape(64 * 128, 768, 8, 20))
TINY = (Shape(20, 24, 2, 1),)


def kernels_section(name: str, seconds: float, dry_run: bool) -> Section:
    """A section that times the kernels of a linear layer of RoBERTa-base.

    Args:
        name: Name of the section.
        seconds: Its time budget, in which the kernels are also compiled.
        dry_run: A tiny layer.
    """
    shapes = TINY if dry_run else SHAPES
    config = {"shapes": [asdict(shape) for shape in shapes], "blocks": [list(blocks) for blocks in BLOCKS]}
    return Section(name, seconds, config, partial(_run, shapes))


def _run(shapes: tuple[Shape, ...], budget: Budget) -> Results:
    reason = unavailable()
    if reason is not None:
        return {"skipped": f"not run: {reason}"}
    rows: list[Results] = []
    for number, shape in enumerate(shapes):
        share = budget.part(budget.remaining / (len(shapes) - number))
        try:
            rows += [{"rows": shape.rows} | row for row in _rows_of_shape(shape, share)]
        except OutOfTime as error:
            rows.append({"case": f"{shape.rows} rows", "error": f"not run: {error}"})
    return {"cases": rows}


def _rows_of_shape(shape: Shape, budget: Budget) -> list[Results]:
    """One row for each case; the seconds are those of all calls of its graph."""
    runs: dict[str, Callable[[], Tensor]] = {}
    errors: dict[str, str] = {}
    differences: dict[str, Results] = {}
    expected: Tensor | None = None
    for name, call in _calls(shape).items():
        budget.check()
        try:
            output = call()
            expected = output.clone() if expected is None else expected
            differences[name] = {"error_against_torch": relative_error(output, expected)}
            runs[name] = captured(partial(_many, call, shape.calls))
        except OutOfTime:
            raise
        except Exception as error:
            errors[name] = describe_error(error)
    measured = measure({name: partial(timed, run) for name, run in runs.items()}, ROUNDS, budget)
    measured.errors.update(errors)
    return [row | differences.get(row["case"], {}) for row in measured.rows(reference=TORCH)]


def _many(call: Callable[[], Tensor], count: int) -> Tensor:
    output = call()
    for _ in range(count - 1):
        output = call()
    return output


def _calls(shape: Shape) -> dict[str, Callable[[], Tensor]]:
    """The update y + (x Left) Right, PyTorch's first: each call returns y as it is after one update of a zero y."""
    from metalora.adapters.triton_kernels.launch import Blocks, add_low_rank_

    generator = torch.Generator().manual_seed(0)
    sizes = ((shape.rows, shape.channels), (shape.rank, shape.channels), (shape.rank, shape.channels))
    x, left, right = (torch.randn(size, generator=generator).to(bench_device(), torch.bfloat16) for size in sizes)
    y = torch.empty_like(x)

    def by_torch() -> Tensor:
        return y.zero_().addmm_(x @ left.mT, right)

    def by_triton(blocks: Blocks | None) -> Tensor:
        add_low_rank_(y.zero_(), x, left, right, blocks=blocks)
        return y

    calls: dict[str, Callable[[], Tensor]] = {TORCH: by_torch, DEFAULT: partial(by_triton, None)}
    for rows, channels, stages in BLOCKS:
        calls[f"{DEFAULT}, blocks of {rows} x {channels}, {stages} stages"] = partial(
            by_triton, Blocks(rows, channels, stages)
        )
    return calls
