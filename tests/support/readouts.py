"""Support sets of Gaussian classes."""

import torch


def gaussian_task(items=24, width=7, classes=3, spread=1.0, seed=0):
    """Features of Gaussian classes in float64, (n, d), and their codes, (n,); tasks of one shape share the means."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99)).double()
    codes = torch.arange(items) % classes
    return centres[codes] + spread * torch.randn(items, width, generator=generator).double(), codes


def image_like_task(items=60, queries=600, width=400, classes=4, seed=0):
    """A support set and queries in float32: common variation of 30 directions, and a fifth of the features inform."""
    generator = torch.Generator().manual_seed(seed)
    informs = torch.rand(width, generator=generator) < 0.2
    centres = 0.7 * torch.randn(classes, width, generator=generator) * informs
    mixing = torch.randn(30, width, generator=generator) / 2

    def draw(count):
        codes = torch.arange(count) % classes
        noise = torch.randn(count, width, generator=generator)
        return centres[codes] + torch.randn(count, 30, generator=generator) @ mixing + noise, codes

    return *draw(items), *draw(queries)
