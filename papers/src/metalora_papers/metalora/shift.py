"""Suite "shift": rotation, polarity, blur, noise and scale as domains, with held-out angles and combinations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.angle_ranges import AngleRanges
from metalora_papers.metalora.domain_images import DomainImages
from metalora_papers.metalora.drawing import add_noise, gaussian_matrices, to_unit
from metalora_papers.metalora.image_split import ImageSplit, load_image_split

# Angles in [-90, 90); each split has its own arcs of every 45°.
ANGLE_RANGES = {
    "train": AngleRanges(((0, 12), (33, 45)), period=45, turns=4, first=-90),
    "val": AngleRanges(((12, 17), (28, 33)), period=45, turns=4, first=-90),
    "test": AngleRanges(((17, 28),), period=45, turns=4, first=-90),
}
# Whether a domain is (inverted, blurred, noisy, small); test and val have combinations that train never shows.
TEST_COMBINATIONS = ((1, 1, 0, 0), (0, 0, 1, 1), (1, 0, 1, 0), (0, 1, 0, 1))
VAL_COMBINATIONS = ((1, 0, 0, 1), (0, 1, 1, 0))
ALL_COMBINATIONS = tuple((a, b, c, d) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1))
COMBINATIONS = {
    "train": tuple(one for one in ALL_COMBINATIONS if one not in TEST_COMBINATIONS + VAL_COMBINATIONS),
    "val": VAL_COMBINATIONS,
    "test": TEST_COMBINATIONS,
}
BLUR_RANGE, NOISE_RANGE = (0.7, 1.3), (0.1, 0.25)
SMALL_RANGE, FULL_RANGE = (0.55, 0.75), (0.9, 1.05)


@dataclass(frozen=True)
class ShiftDomain:
    """Angle in degrees (counter-clockwise), polarity, blur in pixels, noise and size of the object, all by domain."""

    angle: float
    inverted: bool
    blur: float
    noise: float
    scale: float


class ShiftImages(DomainImages[ShiftDomain]):
    """28×28 grey images in three equal channels; noise differs between them.

    ValueError: unknown source or split, unusable `seen`, missing files.
    """

    has_clean = True

    def __init__(self, source: str, *, seen: tuple[int, ...] | None = None, root: str | Path | None = None):
        self.image_split: ImageSplit = load_image_split(source, seen, root)

    def sample_domain(self, split: str, generator: torch.Generator) -> ShiftDomain:
        """Draw an angle from the split's arcs and a combination from the split's list, strengths continuous."""
        check_choice("split", split, tuple(COMBINATIONS))
        combinations = COMBINATIONS[split]
        inverted, blurred, noisy, small = combinations[int(torch.randint(len(combinations), (), generator=generator))]
        blur, noise, size = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        return ShiftDomain(
            angle=ANGLE_RANGES[split].sample(generator),
            inverted=bool(inverted),
            blur=_between(BLUR_RANGE, blur) if blurred else 0.0,
            noise=_between(NOISE_RANGE, noise) if noisy else 0.0,
            scale=_between(SMALL_RANGE if small else FULL_RANGE, size),
        )

    def render(
        self,
        images: Tensor,
        angle: Tensor,
        inverted: Tensor,
        blur: Tensor,
        noise: Tensor,
        scale: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw images, uint8 (n, h, w), by a domain each, float32 (n,), as (n, 3, h, w) in [0, 1]."""
        n, height, width = images.shape
        turn = torch.deg2rad(angle)
        cosine, sine, zero = turn.cos() / scale, turn.sin() / scale, torch.zeros_like(turn)
        matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).reshape(n, 2, 3)
        grid = F.affine_grid(matrix, [n, 1, height, width], align_corners=False)
        canvas = F.grid_sample(to_unit(images)[:, None], grid, align_corners=False)[:, 0]
        canvas = gaussian_matrices(height, blur) @ canvas @ gaussian_matrices(width, blur).mT
        sign = inverted[:, None, None]
        canvas = canvas * (1 - 2 * sign) + sign
        return add_noise(canvas[:, None].repeat(1, 3, 1, 1), noise, generator)

    def clean(self, images: Tensor) -> Tensor:
        """Images, uint8 (n, h, w), upright, light on dark, as float32 (n, 3, h, w) in [0, 1]."""
        return to_unit(images)[:, None].repeat(1, 3, 1, 1)

    def draw_ids(
        self, domains: Sequence[ShiftDomain], index: Tensor, split: str, classes: str, generator: torch.Generator
    ) -> Tensor:
        return self.image_split.draw(split, self.image_split.draw_labels(classes, len(index), generator), generator)

    def draw_bank(
        self, domain: ShiftDomain, split: str, classes: str, per_class: int, n_query: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return self.image_split.draw_bank(split, classes, per_class, n_query, generator)

    def labels_of(self, ids: Tensor) -> Tensor:
        return self.image_split.labels[ids]

    def companions(self, split: str, taken: Tensor) -> Tensor:
        """None: no other image appears beside a base image."""
        return taken[:0]

    def shifted(
        self, ids: Tensor, domains: Sequence[ShiftDomain], index: Tensor, companions: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw each base image in its domain; `companions` are not used."""
        rows = [(each.angle, each.inverted, each.blur, each.noise, each.scale) for each in domains]
        angle, inverted, blur, noise, scale = torch.tensor(rows)[index].unbind(1)
        return self.render(self.image_split.images[ids], angle, inverted, blur, noise, scale, generator)

    def clean_like(self, ids: Tensor, domains: Sequence[ShiftDomain], index: Tensor) -> Tensor:
        """The base image as it is: the whole shift belongs to the domain."""
        return self.clean(self.image_split.images[ids])

    def reference(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The base image as it is."""
        return self.clean(self.image_split.images[ids])


def _between(bounds: tuple[float, float], spot: float) -> float:
    low, high = bounds
    return low + (high - low) * spot
