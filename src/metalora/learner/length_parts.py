"""Batches of texts, divided by their length, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metalora.adapters.conditioning.features import Inputs, token_mask

PARTS = 4
FEWEST = 8  # texts of a part; with fewer the matrices are too small to be fast


def by_length(function: Callable[..., Tensor], inputs: Inputs, *of_examples: Tensor) -> Tensor:
    """Return function(inputs, *of_examples), computed on texts of similar length together.

    A batch of texts is padded to its longest, so that a long one makes all others as slow as itself. Here it is divided
    into at most four parts, and each is cut off at its own longest text. This is done on a CPU only: a GPU computes a
    small batch in the time of a large one. Inputs without an attention mask are taken as they are.

    Args:
        function: Inputs -> features, (n, d); those of an example must not depend on the others.
        inputs: What the network takes, for n examples.
        of_examples: Further arguments of the function, which have a number or a row for each example, (n, ...).

    Returns:
        The features, (n, d), in the order of the inputs.

    Example:
        >>> mask = torch.arange(6) < torch.arange(16)[:, None] % 6 + 1
        >>> inputs = {"input_ids": torch.ones(16, 6), "attention_mask": mask.long()}
        >>> by_length(lambda part: part["attention_mask"].sum(1, keepdim=True), inputs)[:, 0]
        tensor([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4])
    """
    mask = token_mask(inputs)
    if mask is None or mask.device.type != "cpu" or len(mask) < 2 * FEWEST or mask.all():
        return function(inputs, *of_examples)
    rows = mask.sum(1).argsort(stable=True)
    parts = torch.split(rows, max(FEWEST, -(-len(rows) // PARTS)))
    features = []
    for part in parts:
        arguments = (tensor[part.to(tensor.device)] for tensor in of_examples)
        features.append(function(_cut(inputs, part, mask), *arguments))
    return torch.cat(features)[rows.argsort()]


def _cut(inputs: Any, rows: Tensor, mask: Tensor) -> dict[str, Any]:
    """Return some texts without the columns that are padding in all of them, before or behind the texts."""
    used = mask[rows].any(0).nonzero()[:, 0]
    columns = slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(None)
    return {
        name: value[rows][:, columns] if value.shape[:2] == mask.shape else value[rows]
        for name, value in inputs.items()
    }
