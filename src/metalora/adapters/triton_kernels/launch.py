"""The Triton kernels on tensors, each by one launch. Importing this module imports triton.

Legend: n rows, examples x tokens · i, o channels in and out · k, k' ranks before and after Mid · m conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from metalora.adapters.triton_kernels.available import is_interpreted
from metalora.adapters.triton_kernels.device import (
    add_low_rank_kernel,
    products_of_conditions_kernel,
    products_over_rows_kernel,
)

LEAST_BLOCK, MOST_ROWS = 16, 64  # a product of blocks needs 16 numbers on each axis
ENOUGH_PROGRAMS = 128  # about one for each multiprocessor of a large card


@dataclass(frozen=True)
class Blocks:
    """How `add_low_rank_` divides its work.

    Attributes:
        rows: Rows of a program, 16, 32 or 64.
        channels: Channels that a program reads at once.
        stages: Blocks of channels that are on their way at once.
    """

    rows: int
    channels: int
    stages: int


def blocks_for(examples: int, tokens: int, rank: int, dtype: torch.dtype) -> Blocks:
    """Return the blocks for a number of examples with so many rows each.

    A program has fewer rows if there would be too few programs to fill a card. Products of 16-bit numbers are those of
    tensor cores, which need few registers, and such numbers take half the memory: more of them are read at once.

    Args:
        examples: Number of examples.
        tokens: Rows of each.
        rank: The larger one of the two ranks.
        dtype: Type of the numbers.

    Example:
        >>> blocks_for(1, 1024, 8, torch.bfloat16)
        Blocks(rows=16, channels=128, stages=3)
        >>> blocks_for(64, 128, 8, torch.bfloat16).rows
        64
    """
    is_wide = dtype == torch.float32
    rows = _block(tokens, MOST_ROWS // 2 if is_wide else MOST_ROWS)
    while rows > LEAST_BLOCK and examples * triton.cdiv(tokens, rows) < ENOUGH_PROGRAMS:
        rows //= 2
    if is_wide:
        return Blocks(rows, channels=64 if rank <= 64 else 32, stages=2)
    return Blocks(rows, channels=128 if rank <= 32 else 64 if rank <= 64 else 32, stages=3)


def add_low_rank_(
    y: Tensor | None,
    x: Tensor,
    left: Tensor,
    right: Tensor,
    mid: Tensor | None = None,
    index: Tensor | None = None,
    keep: bool = True,
    blocks: Blocks | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Write y + ((x Left) Mid) Right into y, each example with the Mid of its condition, which is not copied.

    All but `index` have one type. Sums are added up in float32.

    Args:
        y: (n, o), with neighbouring channels next to each other, overwritten; None: only the two results are computed.
        x: (n, i), in any layout.
        left: Left (k, i), in any layout.
        right: Right (k', o), in any layout.
        mid: (m, k, k'), in any layout; None: there is none, and k' is k.
        index: The condition of each example, (examples,), from 0 to m - 1; the n rows are those of the examples one
            after another, equally many of each. None: example e has condition e.
        keep: Whether the two results are stored, which a backward needs.
        blocks: How the work is divided; None: as `blocks_for` says.

    Returns:
        x Left (n, k) and x Left Mid (n, k'), one tensor if there is no Mid; None for both without `keep`.

    Raises:
        ValueError: y is not laid out as said.
    """
    if y is not None and y.stride(1) != 1 and y.shape[1] > 1:
        raise ValueError(f"y {tuple(y.shape)} has strides {y.stride()}: expected channels next to each other, (.., 1)")
    n, examples = len(x), _examples(mid, index)
    rank, mixed_rank = len(left), len(right)
    tokens = n // examples
    hidden = x.new_empty(n, rank) if keep else None
    mixed = hidden if mid is None or not keep else x.new_empty(n, mixed_rank)
    blocks = blocks or blocks_for(examples, tokens, max(rank, mixed_rank), x.dtype)
    with _device_of(x):
        add_low_rank_kernel[(examples * triton.cdiv(tokens, blocks.rows),)](
            x,
            y,
            left,
            right,
            mid,
            index,
            hidden,
            mixed,
            tokens,
            x.shape[1],
            right.shape[1],
            rank,
            mixed_rank,
            *x.stride(),
            0 if y is None else y.stride(0),
            *left.stride(),
            *right.stride(),
            *((0, 0, 0) if mid is None else mid.stride()),
            HAS_MID=mid is not None,
            HAS_INDEX=index is not None,
            WRITES_OUTPUT=y is not None,
            KEEPS_HIDDEN=keep,
            WIDENS=_widens(x),
            BLOCK_TOKENS=blocks.rows,
            BLOCK_CHANNELS=blocks.channels,
            BLOCK_RANK=_block(rank),
            BLOCK_MIXED=_block(mixed_rank),
            num_stages=blocks.stages,
        )
    return hidden, mixed


def factor_gradients(
    dh: Tensor | None, x: Tensor | None, left: Tensor, mixed: Tensor | None, dy: Tensor, right: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return dLeft = dh' x (k, i) and dRight = mixed' dy (k', o), each in the layout of its factor, by one launch.

    Args:
        dh: (n, k), contiguous; None: dLeft is not computed.
        x: (n, i), in any layout; None together with dh.
        left: Left (k, i), for the layout of its gradient.
        mixed: (n, k'), contiguous; None: dRight is not computed.
        dy: (n, o), in any layout.
        right: Right (k', o), for the layout of its gradient.
    """
    d_left = None if dh is None else torch.empty_like(left)
    d_right = None if mixed is None else torch.empty_like(right)
    triples = [(dh, x, d_left), (mixed, dy, d_right)]
    wanted = [(a, b, c) for a, b, c in triples if a is not None and b is not None and c is not None]
    if wanted:
        _products_over_rows(*wanted[0], *wanted[-1], count=len(wanted))
    return d_left, d_right


def _products_over_rows(
    a: Tensor, b: Tensor, a_times_b: Tensor, c: Tensor, d: Tensor, c_times_d: Tensor, count: int
) -> None:
    """Write a' b, and c' d if the count is two."""
    columns = [product.shape[1] for product in (a_times_b, c_times_d)][:count]
    # Each program goes through all rows, so that narrow blocks of columns make more programs.
    block = 2 * LEAST_BLOCK if sum(columns) >= 2 * LEAST_BLOCK * ENOUGH_PROGRAMS else LEAST_BLOCK
    rank = _block(max(a.shape[1], c.shape[1]))
    is_small = rank <= 2 * LEAST_BLOCK and d.dtype != torch.float32  # so that more rows fit into a multiprocessor
    with _device_of(d):
        products_over_rows_kernel[(sum(triton.cdiv(size, block) for size in columns),)](
            a,
            b,
            a_times_b,
            c,
            d,
            c_times_d,
            len(a),
            a.shape[1],
            b.shape[1],
            c.shape[1],
            d.shape[1],
            *b.stride(),
            *a_times_b.stride(),
            *d.stride(),
            *c_times_d.stride(),
            WIDENS=_widens(a),
            BLOCK_ROWS=_block(len(a), 2 * MOST_ROWS if is_small else MOST_ROWS),
            BLOCK_COLUMNS=block,
            BLOCK_RANK=rank,
            num_stages=3 if is_small else 2,
        )


def mid_gradient(hidden: Tensor, d_mixed: Tensor, mid: Tensor, index: Tensor | None) -> Tensor:
    """Return dMid (m, k, k'): of each condition hidden' d_mixed over its rows, and zeros if it has none.

    Args:
        hidden: x Left (n, k), contiguous.
        d_mixed: The gradient of x Left Mid (n, k'), contiguous.
        mid: Mid (m, k, k').
        index: The condition of each example, as `add_low_rank_` takes it.
    """
    d_mid = mid.new_empty(mid.shape)
    conditions, rank, mixed_rank = mid.shape
    examples = _examples(mid, index)
    tokens = len(hidden) // examples
    with _device_of(hidden):
        products_of_conditions_kernel[(conditions,)](
            hidden,
            d_mixed,
            d_mid,
            index,
            examples,
            tokens,
            rank,
            mixed_rank,
            HAS_INDEX=index is not None,
            WIDENS=_widens(hidden),
            BLOCK_TOKENS=_block(tokens, MOST_ROWS),
            BLOCK_RANK=_block(rank),
            BLOCK_MIXED=_block(mixed_rank),
            num_stages=2,
        )
    return d_mid


def _device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Let Triton launch on the card of a tensor inside; nothing changes for one on a CPU."""
    device_of: Callable[[Tensor], AbstractContextManager[None]] = torch.cuda.device_of
    return device_of(tensor)


def _widens(tensor: Tensor) -> bool:
    """Return True if the numbers must be converted to float32 before a product; see `device`."""
    return tensor.dtype == torch.bfloat16 and is_interpreted()


def _examples(mid: Tensor | None, index: Tensor | None) -> int:
    """Return in how many examples the rows are divided; without Mid all rows are alike."""
    if mid is None:
        return 1
    return len(mid) if index is None else len(index)


def _block(size: int, most: int | None = None) -> int:
    """Return the size of a block that covers an axis, a power of two; at most `most`."""
    block: int = max(LEAST_BLOCK, triton.next_power_of_2(size))
    return block if most is None else min(block, most)
