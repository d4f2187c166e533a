"""The kernels themselves, in Triton's language. Importing this module imports triton.

A matrix is given by its address and its strides. Numbers are read in their own type and added up in float32. WIDENS
converts them before a product, for Triton's interpreter, which takes the bits of a bfloat16 for an integer.

Legend: n rows, examples x tokens · i, o channels in and out · k, k' ranks before and after Mid · m conditions.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens"])  # its numbers are many, and a new kernel takes seconds to compile
def add_low_rank_kernel(
    x: tl.tensor,  # (n, i)
    y: tl.tensor,  # (n, o), read and written
    left: tl.tensor,  # (k, i)
    right: tl.tensor,  # (k', o)
    mid: tl.tensor,  # (m, k, k')
    index: tl.tensor,  # (examples,), the condition of each example
    hidden: tl.tensor,  # (n, k), written
    mixed: tl.tensor,  # (n, k'), written
    tokens: tl.tensor,  # rows of one example
    inputs: tl.tensor,
    outputs: tl.tensor,
    rank: tl.tensor,
    mixed_rank: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    y_row: tl.tensor,
    left_row: tl.tensor,
    left_column: tl.tensor,
    right_row: tl.tensor,
    right_column: tl.tensor,
    mid_condition: tl.tensor,
    mid_row: tl.tensor,
    mid_column: tl.tensor,
    HAS_MID: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    WRITES_OUTPUT: tl.constexpr,
    KEEPS_HIDDEN: tl.constexpr,
    WIDENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_MIXED: tl.constexpr,
) -> None:
    """Compute y += ((x Left) Mid) Right for the rows of one block of tokens, which belong to one example."""
    blocks = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    example = tl.program_id(0) // blocks
    token = (tl.program_id(0) % blocks) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    row = example.to(tl.int64) * tokens + token
    has_row = token[:, None] < tokens
    place = tl.arange(0, BLOCK_RANK)
    channels = tl.arange(0, BLOCK_CHANNELS)

    h = tl.full((BLOCK_TOKENS, BLOCK_RANK), 0.0, tl.float32)
    for start in range(0, inputs, BLOCK_CHANNELS):
        channel = start + channels
        has_channel = channel < inputs
        x_at = x + row[:, None] * x_row + channel[None, :] * x_column
        left_at = left + channel[:, None] * left_column + place[None, :] * left_row  # Left', (channels, k)
        x_block = tl.load(x_at, mask=has_row & has_channel[None, :], other=0.0)
        left_block = tl.load(left_at, mask=has_channel[:, None] & (place[None, :] < rank), other=0.0)
        h = _add_product(h, x_block, left_block, WIDENS)
    h = h.to(x.dtype.element_ty)
    if KEEPS_HIDDEN:
        tl.store(hidden + row[:, None] * rank + place[None, :], h, mask=has_row & (place[None, :] < rank))

    mixed_place = tl.arange(0, BLOCK_MIXED)
    if HAS_MID:
        condition = example.to(tl.int64)
        if HAS_INDEX:
            condition = tl.load(index + example).to(tl.int64)
        mid_at = mid + condition * mid_condition + place[:, None] * mid_row + mixed_place[None, :] * mid_column
        mid_block = tl.load(mid_at, mask=(place[:, None] < rank) & (mixed_place[None, :] < mixed_rank), other=0.0)
        mixed_zeros = tl.full((BLOCK_TOKENS, BLOCK_MIXED), 0.0, tl.float32)
        h = _add_product(mixed_zeros, h, mid_block, WIDENS).to(x.dtype.element_ty)
        if KEEPS_HIDDEN:
            mixed_at = mixed + row[:, None] * mixed_rank + mixed_place[None, :]
            tl.store(mixed_at, h, mask=has_row & (mixed_place[None, :] < mixed_rank))

    if WRITES_OUTPUT:
        for start in range(0, outputs, BLOCK_CHANNELS):
            channel = start + channels
            has_channel = channel < outputs
            right_at = right + mixed_place[:, None] * right_row + channel[None, :] * right_column
            has_right = (mixed_place[:, None] < mixed_rank) & has_channel[None, :]
            right_block = tl.load(right_at, mask=has_right, other=0.0)
            y_at = y + row[:, None] * y_row + channel[None, :]
            has_output = has_row & has_channel[None, :]
            y_block = tl.load(y_at, mask=has_output, other=0.0).to(tl.float32)
            y_block = _add_product(y_block, h, right_block, WIDENS)
            tl.store(y_at, y_block.to(y.dtype.element_ty), mask=has_output)


@triton.jit(do_not_specialize=["rows"])
def products_over_rows_kernel(
    a: tl.tensor,  # (n, k)
    b: tl.tensor,  # (n, i)
    a_times_b: tl.tensor,  # (k, i), written
    c: tl.tensor,  # (n, k')
    d: tl.tensor,  # (n, o)
    c_times_d: tl.tensor,  # (k', o), written
    rows: tl.tensor,
    rank: tl.tensor,
    inputs: tl.tensor,
    mixed_rank: tl.tensor,
    outputs: tl.tensor,
    b_row: tl.tensor,
    b_column: tl.tensor,
    first_row: tl.tensor,
    first_column: tl.tensor,
    d_row: tl.tensor,
    d_column: tl.tensor,
    second_row: tl.tensor,
    second_column: tl.tensor,
    WIDENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """Compute a block of columns of a' b or of c' d; both products are of thin matrices with many rows."""
    blocks_of_first = (inputs + BLOCK_COLUMNS - 1) // BLOCK_COLUMNS
    block = tl.program_id(0)
    if block < blocks_of_first:
        _product_over_rows(
            a, b, a_times_b, rows, rank, inputs, b_row, b_column, first_row, first_column, block,
            WIDENS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
        )  # fmt: skip
    else:
        _product_over_rows(
            c, d, c_times_d, rows, mixed_rank, outputs, d_row, d_column, second_row, second_column,
            block - blocks_of_first, WIDENS, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_RANK,
        )  # fmt: skip


@triton.jit
def _product_over_rows(
    thin: tl.tensor,  # (n, k), contiguous
    wide: tl.tensor,  # (n, columns)
    product: tl.tensor,  # (k, columns), written
    rows: tl.tensor,
    rank: tl.tensor,
    columns: tl.tensor,
    wide_row: tl.tensor,
    wide_column: tl.tensor,
    product_row: tl.tensor,
    product_column: tl.tensor,
    block: tl.tensor,
    WIDENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
) -> None:
    """Compute thin' wide for one block of columns."""
    place = tl.arange(0, BLOCK_RANK)
    column = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    total = tl.full((BLOCK_RANK, BLOCK_COLUMNS), 0.0, tl.float32)
    for start in range(0, rows, BLOCK_ROWS):
        row = (start + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        thin_at = thin + row[None, :] * rank + place[:, None]  # thin', (k, rows)
        wide_at = wide + row[:, None] * wide_row + column[None, :] * wide_column
        thin_block = tl.load(thin_at, mask=(place[:, None] < rank) & (row[None, :] < rows), other=0.0)
        wide_block = tl.load(wide_at, mask=(row[:, None] < rows) & (column[None, :] < columns), other=0.0)
        total = _add_product(total, thin_block, wide_block, WIDENS)
    product_at = product + place[:, None] * product_row + column[None, :] * product_column
    has_number = (place[:, None] < rank) & (column[None, :] < columns)
    tl.store(product_at, total.to(product.dtype.element_ty), mask=has_number)


@triton.jit(do_not_specialize=["examples", "tokens"])
def products_of_conditions_kernel(
    hidden: tl.tensor,  # (n, k)
    gradient: tl.tensor,  # (n, k')
    product: tl.tensor,  # (m, k, k'), written
    index: tl.tensor,  # (examples,), the condition of each example
    examples: tl.tensor,
    tokens: tl.tensor,
    rank: tl.tensor,
    mixed_rank: tl.tensor,
    HAS_INDEX: tl.constexpr,
    WIDENS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_RANK: tl.constexpr,
    BLOCK_MIXED: tl.constexpr,
) -> None:
    """Compute hidden' gradient over the rows of one condition; zeros if no example has it."""
    condition = tl.program_id(0)
    place, mixed_place = tl.arange(0, BLOCK_RANK), tl.arange(0, BLOCK_MIXED)
    total = tl.full((BLOCK_RANK, BLOCK_MIXED), 0.0, tl.float32)
    first, end = condition, condition + 1
    if HAS_INDEX:
        first, end = 0, examples
    for example in range(first, end):
        tokens_of_condition = tokens
        if HAS_INDEX:
            tokens_of_condition = tl.where(tl.load(index + example) == condition, tokens, 0)
        for start in range(0, tokens_of_condition, BLOCK_TOKENS):
            token = start + tl.arange(0, BLOCK_TOKENS)
            row = tl.cast(tokens, tl.int64) * example + token
            hidden_at = hidden + row[None, :] * rank + place[:, None]  # hidden', (k, tokens)
            gradient_at = gradient + row[:, None] * mixed_rank + mixed_place[None, :]
            has_hidden = (token[None, :] < tokens) & (place[:, None] < rank)
            has_gradient = (token[:, None] < tokens) & (mixed_place[None, :] < mixed_rank)
            hidden_block = tl.load(hidden_at, mask=has_hidden, other=0.0)
            gradient_block = tl.load(gradient_at, mask=has_gradient, other=0.0)
            total = _add_product(total, hidden_block, gradient_block, WIDENS)
    number_of_condition = place[:, None] * mixed_rank + mixed_place[None, :]
    product_at = product + condition.to(tl.int64) * rank * mixed_rank + number_of_condition
    has_number = (place[:, None] < rank) & (mixed_place[None, :] < mixed_rank)
    tl.store(product_at, total.to(product.dtype.element_ty), mask=has_number)


@triton.jit
def _add_product(total: tl.tensor, a: tl.tensor, b: tl.tensor, WIDENS: tl.constexpr) -> tl.tensor:
    """Return total + a b, for blocks; the total is in float32."""
    if WIDENS:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")
