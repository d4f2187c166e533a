"""Vectorised drawing: colours, resampling, blur and frames, one setting per image."""

import torch
from torch import Tensor


def hue_to_rgb(degrees: Tensor) -> Tensor:
    """Fully saturated, full-value colours of hues in degrees: (n,) -> (n, 3) in [0, 1]."""
    sector = (degrees[:, None] / 60 + torch.tensor([0.0, 4.0, 2.0])) % 6
    return ((sector - 3).abs() - 1).clamp(0, 1)


def edge_distance(size: int) -> Tensor:
    """Distance in pixels of each pixel to the nearest edge, 0 at the edge: (size, size)."""
    line = torch.arange(size)
    line = torch.minimum(line, size - 1 - line)
    return torch.minimum(line[:, None], line)


def resampling_matrices(n_in: int, n_out: int, width: Tensor, centre: Tensor) -> Tensor:
    """Matrices (n, n_out, n_in) that draw a line of n_in pixels `width` pixels wide around `centre` (both (n,)).

    A triangle as wide as the coarser of the two grids: bilinear when enlarging, without aliasing when shrinking.
    """
    step = (n_in / width)[:, None, None]
    reach = step.clamp(min=1)
    margin = 2 * int(reach.max().ceil())  # pixels outside count in the normalisation, so that edges fade to 0
    out = torch.arange(n_out)[None, :, None] + 0.5 - centre[:, None, None]
    source = torch.arange(-margin, n_in + margin) + 0.5 - n_in / 2
    weights = (1 - (out * step - source).abs() / reach).clamp(min=0)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
    return weights[:, :, margin : margin + n_in]


def gaussian_matrices(size: int, sigma: Tensor) -> Tensor:
    """Blur matrices (n, size, size) with standard deviation `sigma` (n,) in pixels; the identity at 0."""
    line = torch.arange(size, dtype=torch.float32)
    squared = (line[:, None] - line) ** 2
    weights = torch.exp(-squared / (2 * sigma[:, None, None].clamp(min=1e-3) ** 2))
    return weights / weights.sum(-1, keepdim=True)


def add_noise(images: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma` (n,) to images (n, 3, h, w) and clamp to [0, 1]."""
    noise = torch.randn(images.shape, generator=generator)
    return noise.mul_(sigma[:, None, None, None]).add_(images).clamp_(0, 1)


def to_unit(images: Tensor) -> Tensor:
    """Bytes to float32 in [0, 1]."""
    return images.float().mul_(1 / 255)
