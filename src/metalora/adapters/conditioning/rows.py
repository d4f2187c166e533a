"""Which condition each row of a batch, or each token of a packed batch, runs under."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metalora._util.sending import sent
from metalora.adapters.conditioning.condition import Values
from metalora.adapters.readable import is_readable

if TYPE_CHECKING:
    from metalora.adapters.adapter import Adapter


class TokenValues(dict[str, Tensor]):
    """Values for every token of a packed batch: key of a stored factor -> (tokens, *factor shape).

    The inputs of such a batch are (1, tokens, ..). A layer takes them as `tokens` examples of one token each.
    """


class RowValues(Mapping[str, Tensor]):
    """Values of a table of conditions for rows that name them: key of a stored factor -> (rows, *factor shape).

    The values of the rows are copied out of the table only when they are read; Triton kernels read the table itself.

    Attributes:
        table: Key of a stored factor -> its values, (n, *factor shape).
        rows: Number of the condition of each row, (m,), on the device of the table.

    Example:
        >>> values = RowValues({"C": torch.tensor([[1.0], [2.0]])}, torch.tensor([1, 0, 1]))
        >>> values["C"].flatten(), len(values.table["C"])
        (tensor([2., 1., 2.]), 2)
    """

    def __init__(self, table: Values, rows: Tensor):
        self.table, self.rows = table, rows
        self._copied: dict[tuple[str, bool], Tensor] = {}  # without a gradient, a copy is not the same as with it

    def __getitem__(self, key: str) -> Tensor:
        """Return the values of a stored factor for each row, (rows, *factor shape)."""
        place = key, torch.is_grad_enabled()
        if place not in self._copied:
            self._copied[place] = self.table[key].index_select(0, self.rows)
        return self._copied[place]

    def __iter__(self) -> Iterator[str]:
        """Go through the keys of the stored factors."""
        return iter(self.table)

    def __len__(self) -> int:
        """Return the number of stored factors."""
        return len(self.table)


def values_of_rows(values: Values, rows: Tensor | Sequence[int], copy: bool = True) -> Values:
    """Return the values of the condition of each row.

    Args:
        values: Key of a stored factor -> its values, (n, *factor shape).
        rows: Number of the condition of each row, (m,), from 0 to n - 1.
        copy: Whether the values of the rows are copied now; False: a `RowValues`, which copies those that are read.

    Returns:
        Key of a stored factor -> (m, *factor shape).

    Raises:
        ValueError: The rows are not integers from 0 to n - 1, (m,).

    Example:
        >>> values_of_rows({"C": torch.tensor([[1.0], [2.0]])}, [1, 0, 1])["C"].flatten()
        tensor([2., 1., 2.])
    """
    first = next(iter(values.values()))
    index = torch.as_tensor(rows)
    if index.ndim != 1 or (len(index) and (index.is_floating_point() or index.dtype == torch.bool)):
        raise ValueError(f"rows: expected the number of a condition for each row, (m,), got {tuple(index.shape)}")
    index = index.long()
    if is_readable(index) and len(index):
        numbers = index.cpu()  # a GPU that has them is waited for once, and no GPU otherwise
        if int(numbers.min()) < 0 or int(numbers.max()) >= len(first):
            raise ValueError(f"rows: {numbers.tolist()} are not all numbers of conditions, 0..{len(first) - 1}")
        if len(numbers) == len(first) and torch.equal(numbers, torch.arange(len(numbers))):
            return dict(values)  # all of them in their order
    index = sent(index, first.device)
    if not copy:
        return RowValues(values, index)
    return {key: value.index_select(0, index) for key, value in values.items()}


def check_packed(adapter: Adapter) -> None:
    """Raise a ValueError if a target of an adapter cannot have a condition for each token of one example."""
    from metalora.adapters.layers import AdaptedLayer

    for path, layer in adapter.layers.items():
        mixes = isinstance(layer, AdaptedLayer) and layer.runs_whole
        if layer.target.kind not in ("linear", "conv1d_gpt2", "embedding") or mixes:
            raise ValueError(
                f"packed=True: target {path!r} ({type(layer.base).__name__}) may mix the tokens of an example, so that "
                f"it has no condition for each; leave it out, exclude=[{path!r}], or run the tenants as a batch of "
                "several rows"
            )


def tokens_as_examples(x: Tensor, values: TokenValues, axes: int, path: str) -> tuple[Tensor, bool]:
    """Return an input of a packed batch with a token for each example.

    Args:
        x: The input of a layer, (1, tokens, *axes of a token) or (tokens, *axes of a token).
        values: The values of the tokens.
        axes: Number of axes of a token: 1 for its channels, 0 for an id.
        path: Path of the layer, for messages.

    Returns:
        The input (tokens, 1, *axes) or (tokens, *axes), and whether its first two axes were exchanged.

    Raises:
        ValueError: The input is of another number of tokens, or of several rows.
    """
    tokens = len(next(iter(values.values())))
    if x.ndim == 1 + axes and x.shape[0] == tokens:
        return x, False
    if x.ndim == 2 + axes and x.shape[0] == 1 and x.shape[1] == tokens:
        return x.transpose(0, 1), True
    raise ValueError(
        f"target {path!r}: rows name the conditions of {tokens} tokens of a packed batch, the layer got an input of "
        f"shape {tuple(x.shape)}; expected (1, {tokens}{', channels' if axes else ''})"
    )
