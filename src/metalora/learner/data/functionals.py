"""Random functionals: numbers that a random recipe computes from pictures, texts or arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from metalora.learner.data.preprocessing import Inputs
from metalora.learner.data.random_draws import chance, random_normal, random_whole_number

FILTERS = 8
FILTER_POSITIONS = {1: 16, 3: 16, 5: 12}  # side of a filter -> about how many positions it has along a picture
DILATIONS = (1, 2, 4)  # distances between the pixels that a filter sees: fine and coarse structures
MASK_SIDE = 4  # a smooth mask is a random field of 4 x 4 numbers, interpolated
BENDS: tuple[Callable[[Tensor], Tensor], ...] = (torch.relu, torch.abs, torch.square, torch.tanh)


def functional_values(inputs: Inputs, count: int, generator: torch.Generator) -> Tensor:
    """Return numbers that a new random functional computes from every item.

    Args:
        inputs: Prepared inputs of n items: pictures (n, channels, height, width), texts (a dictionary with `input_ids`
            and `attention_mask`, (n, tokens)), or arrays (n, ...).
        count: How many numbers an item gets.
        generator: Source of all randomness.

    Returns:
        The numbers, (n, count), float32.

    Example:
        >>> texts = {"input_ids": torch.tensor([[5, 6], [5, 0]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
        >>> functional_values(texts, 3, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3])
    """
    if isinstance(inputs, Mapping):
        return text_values(inputs["input_ids"], inputs["attention_mask"], count, generator)
    if inputs.ndim == 4:
        return picture_values(inputs.float(), count, generator)
    return array_values(inputs.float().flatten(1), count, generator)


# ---- pictures -------------------------------------------------------------------------------------------------------
def picture_values(pictures: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return a random channel mix of bent filter responses, averaged over the picture or over a smooth random mask.

    The pictures are convolved with eight random unit filters of 1 x 1, 3 x 3 or 5 x 5 pixels, at a grid of positions
    that is wide enough to be fast and narrow enough for a mean. Half of the time the pictures or the filters have the
    mean 0 (the mean colour does not count), and half of the time the responses are pooled and convolved once more.

    Args:
        pictures: The pictures, (n, channels, height, width).
        count: How many numbers a picture gets.
        generator: Source of all randomness.

    Returns:
        The numbers, (n, count).
    """
    centred = random_whole_number(4, generator)  # 0: the pictures, 1: the filters, otherwise neither
    if centred == 0:
        pictures = pictures - pictures.mean((2, 3), keepdim=True)
    responses = _filtered(pictures, centred == 1, generator)
    if chance(0.5, generator) and min(responses.shape[2:]) >= 4:
        responses = _filtered(_pooled(responses), False, generator)
    averages = _averaged(responses, generator)
    return averages @ random_normal(FILTERS, count, generator=generator)


def _filtered(pictures: Tensor, mean_free: bool, generator: torch.Generator) -> Tensor:
    """Return bent responses of random filters, (n, 8, height, width), scaled to the same size on all pictures."""
    side = min(pictures.shape[2:])
    sizes = [size for size in FILTER_POSITIONS if size <= side]
    size = sizes[random_whole_number(len(sizes), generator)]
    dilations = [dilation for dilation in DILATIONS if 2 * (size - 1) * dilation < side] or [1]
    dilation = dilations[random_whole_number(len(dilations), generator)]
    filters = random_normal(FILTERS, pictures.shape[1], size, size, generator=generator)
    if mean_free and filters[0].numel() > 1:
        filters = filters - filters.mean((1, 2, 3), keepdim=True)
    filters = filters / filters.flatten(1).norm(dim=1)[:, None, None, None]
    stride = max(1, side // FILTER_POSITIONS[size])
    responses = F.conv2d(pictures, filters, stride=stride, dilation=dilation)
    bend = BENDS[random_whole_number(len(BENDS), generator)]
    return bend(responses / responses.square().mean().sqrt().clamp_min(1e-12))


def _pooled(responses: Tensor) -> Tensor:
    """Return means over blocks of 2 x 2 positions; for small maps this is faster than `avg_pool2d` on a CPU."""
    height, width = (side // 2 * 2 for side in responses.shape[2:])
    even, odd = responses[..., 0:height:2, :width], responses[..., 1:height:2, :width]
    rows = even + odd
    return (rows[..., 0::2] + rows[..., 1::2]) / 4


def _averaged(responses: Tensor, generator: torch.Generator) -> Tensor:
    """Return means over the picture, or over a smooth random mask that is the same for all pictures, (n, 8)."""
    if not chance(0.5, generator):
        return responses.mean((2, 3))
    field = random_normal(1, 1, MASK_SIDE, MASK_SIDE, generator=generator)
    mask = F.interpolate(2 * field, size=tuple(responses.shape[2:]), mode="bilinear", align_corners=False).sigmoid()
    weights = (mask / mask.sum()).flatten()  # (height * width,)
    return responses.flatten(2) @ weights


# ---- texts ----------------------------------------------------------------------------------------------------------
def text_values(input_ids: Tensor, mask: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the sums or the means of random numbers that every token of the vocabulary has.

    Args:
        input_ids: Token numbers, (n, tokens).
        mask: The tokens that count, (n, tokens), 1 or 0.
        count: How many numbers a text gets.
        generator: Source of all randomness.

    Returns:
        The numbers, (n, count).
    """
    vocabulary, positions = torch.unique(input_ids, return_inverse=True)  # only the tokens of these texts get numbers
    numbers = random_normal(len(vocabulary), count, generator=generator)
    weights = mask.float()
    if chance(0.5, generator):
        weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    totals: Tensor = (numbers[positions] * weights[..., None]).sum(1)
    return totals


# ---- arrays ---------------------------------------------------------------------------------------------------------
def array_values(arrays: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return random linear combinations of the features, half of the time with a bend between two of them.

    Args:
        arrays: Features, (n, f).
        count: How many numbers an item gets.
        generator: Source of all randomness.

    Returns:
        The numbers, (n, count).
    """
    centred = arrays - arrays.mean(0)
    std = centred.square().mean(0).sqrt()  # faster than torch.std
    varies = std > 1e-6 * arrays.abs().amax(0).clamp_min(1e-6)
    standardised = centred / std.where(varies, torch.inf)  # a constant counts for nothing
    weights = random_normal(arrays.shape[1], FILTERS, generator=generator) / arrays.shape[1] ** 0.5
    responses: Tensor = standardised @ weights
    if chance(0.5, generator):
        bend = BENDS[random_whole_number(len(BENDS), generator)]
        responses = bend(responses + random_normal(FILTERS, generator=generator))
    return responses @ random_normal(FILTERS, count, generator=generator)
