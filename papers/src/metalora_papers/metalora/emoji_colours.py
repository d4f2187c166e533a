"""What is measured of the pixels of a drawing: how much of it is drawn, and how much it has of each hue."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metalora_papers.metalora.labelled_items import MISSING, Notion, quantile_bins

WHITE = 250  # a pixel is part of the ground if its three values are at least this
COLOURED = 0.15  # largest minus smallest channel, of 1, from which a pixel has a hue
BINS = 72  # of the colour circle, 5 degrees each
BLOCK = 250  # drawings that are measured at once

FEWEST_COLOURED = 0.1  # share of the drawn pixels from which a drawing has a main hue
SMALLEST_SHARE = 0.5  # of the colour, which the main hue has
# Where each hue ends, in degrees. Few pixels of the emoji are near these borders; from 345 on, a hue is red again.
HUES = {"red": 10, "orange": 35, "yellow": 70, "green": 180, "blue": 245, "purple": 345}
FILL_LEVELS = ("sparse", "low", "high", "full")


@dataclass(frozen=True)
class Colours:
    """Measurements of n drawings.

    Attributes:
        hue: Sum of the chroma of the coloured pixels in each part of the colour circle, float (n, 72).
        coloured: Share of the pixels that have a hue, float (n,).
        drawn: Share of the pixels that are not white, float (n,).
    """

    hue: Tensor
    coloured: Tensor
    drawn: Tensor


def measure(images: Tensor) -> Colours:
    """Measure the pixels of drawings on white.

    Args:
        images: uint8 (n, h, w, 3).
    """
    blocks = [_measure(block) for block in images.split(BLOCK)]
    return Colours(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _measure(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    drawn = (images < WHITE).any(-1).flatten(1)  # (n, h w)
    angle, chroma = hue_and_chroma(images.float().flatten(1, 2) / 255)
    coloured = drawn & (chroma >= COLOURED)
    bins = (angle * (BINS / 360)).long().clamp(max=BINS - 1)
    hue = torch.zeros(len(images), BINS).scatter_add_(1, bins, torch.where(coloured, chroma, 0.0))
    return hue, coloured.float().mean(1), drawn.float().mean(1)


def hue_and_chroma(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Hue and chroma of pixels, as in the HSV model.

    Args:
        pixels: Red, green and blue from 0 to 1, (..., 3).

    Returns:
        The hue in degrees, 0 to 360, and the largest minus the smallest channel, both (...). Grey has hue 0.

    Example:
        >>> hue_and_chroma(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
        (tensor([  0., 120.]), tensor([1.0000, 0.5000]))
    """
    red, green, blue = pixels.unbind(-1)
    largest = pixels.amax(-1)
    chroma = largest - pixels.amin(-1)
    divisor = chroma.clamp(min=1e-6)
    near_red, near_green = (green - blue) / divisor, (blue - red) / divisor + 2
    near_blue = (red - green) / divisor + 4
    sixths = torch.where(largest == red, near_red, torch.where(largest == green, near_green, near_blue))
    return 60 * sixths.remainder(6), chroma


def main_hue(colours: Colours) -> Notion:
    """The hue that has at least half of the colour of a drawing; missing without one, and for grey drawings."""
    centres = (torch.arange(BINS) + 0.5) * (360 / BINS)
    hue_of_bin = torch.bucketize(centres, torch.tensor(list(HUES.values())).float()).remainder(len(HUES))
    totals = torch.zeros(len(colours.hue), len(HUES)).index_add_(1, hue_of_bin, colours.hue)  # (n, hues)
    largest, place = totals.max(1)
    is_coloured = colours.coloured >= FEWEST_COLOURED * colours.drawn.clamp(min=1e-6)
    is_main = largest >= SMALLEST_SHARE * totals.sum(1)
    return Notion(torch.where(is_coloured & is_main, place, MISSING), tuple(HUES))


def fill_level(colours: Colours) -> Notion:
    """How much of a drawing is not white, in four bins of equally many drawings."""
    return Notion(quantile_bins(colours.drawn, len(FILL_LEVELS)), FILL_LEVELS)
