"""Suite "cue": two coloured objects, and the frame's colour says which of them is meant."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.angle_ranges import AngleRanges
from metalora_papers.metalora.domain_images import DomainImages
from metalora_papers.metalora.drawing import add_noise, edge_distance, hue_to_rgb, to_unit
from metalora_papers.metalora.image_split import ImageSplit, load_image_split

DELTAS = (120.0, 180.0, 240.0)
NOISE_RANGE = (0.02, 0.08)
FRAME_WIDTH = 2
HUE_RANGES = {
    "train": AngleRanges(((20, 37), (53, 70)), period=90, turns=4),
    "val": AngleRanges(((37, 53),), period=90, turns=4),
    "test": AngleRanges(((-20, 20),), period=90, turns=4),
}


@dataclass(frozen=True)
class CueDomain:
    """The target's hue and the distractor's distance from it in degrees, and the noise's standard deviation."""

    hue: float
    delta: float
    noise: float


class CueImages(DomainImages[CueDomain]):
    """28×28 images of a target in hue h, a distractor of any class in hue h+δ and a two-pixel frame in hue h.

    ValueError: unknown source or split, unusable `seen`, missing files.
    """

    has_clean = True

    def __init__(self, source: str, *, seen: tuple[int, ...] | None = None, root: str | Path | None = None):
        self.image_split: ImageSplit = load_image_split(source, seen, root)

    def sample_domain(self, split: str, generator: torch.Generator) -> CueDomain:
        """Draw a hue from the split's arcs, a δ of three, a noise level: test hues within 20° of 0, 90, 180, 270."""
        check_choice("split", split, tuple(HUE_RANGES))
        hue = HUE_RANGES[split].sample(generator) % 360
        delta = DELTAS[int(torch.randint(len(DELTAS), (), generator=generator))]
        low, high = NOISE_RANGE
        return CueDomain(hue, delta, low + (high - low) * float(torch.rand((), generator=generator)))

    def render(
        self, target: Tensor, distractor: Tensor, hue: Tensor, delta: Tensor, noise: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw targets and distractors, uint8 (n, h, w), by a domain each, float32 (n,), as (n, 3, h, w) in [0, 1]."""
        first, second = (colour[:, :, None, None] for colour in (hue_to_rgb(hue), hue_to_rgb(hue + delta)))
        canvas = to_unit(target)[:, None] * first + to_unit(distractor)[:, None] * second
        border = (edge_distance(target.shape[-1]) < FRAME_WIDTH).float()
        canvas = canvas.clamp_(max=1) * (1 - border) + first * border
        return add_noise(canvas, noise, generator)

    def clean(self, images: Tensor, generator: torch.Generator, hue: Tensor | None = None) -> Tensor:
        """Draw single objects, uint8 (n, h, w), without frame, distractor or noise; random hues unless given (n,)."""
        if hue is None:
            hue = 360 * torch.rand(len(images), generator=generator)
        return to_unit(images)[:, None] * hue_to_rgb(hue)[:, :, None, None]

    def draw_ids(
        self, domains: Sequence[CueDomain], index: Tensor, split: str, classes: str, generator: torch.Generator
    ) -> Tensor:
        return self.image_split.draw(split, self.image_split.draw_labels(classes, len(index), generator), generator)

    def draw_bank(
        self, domain: CueDomain, split: str, classes: str, per_class: int, n_query: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        return self.image_split.draw_bank(split, classes, per_class, n_query, generator)

    def labels_of(self, ids: Tensor) -> Tensor:
        return self.image_split.labels[ids]

    def companions(self, split: str, taken: Tensor) -> Tensor:
        ids = self.image_split.ids(split)
        return ids[~torch.isin(ids, taken)]

    def shifted(
        self, ids: Tensor, domains: Sequence[CueDomain], index: Tensor, companions: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Draw each base image in its domain, with a distractor from `companions`; ValueError if there are none."""
        if not len(companions):
            raise ValueError("no images are left over for distractors: ask for fewer bank images or queries")
        others = companions[torch.randint(len(companions), (len(ids),), generator=generator)]
        table = torch.tensor([(domain.hue, domain.delta, domain.noise) for domain in domains])
        hue, delta, noise = table[index].unbind(1)
        return self.render(self.image_split.images[ids], self.image_split.images[others], hue, delta, noise, generator)

    def clean_like(self, ids: Tensor, domains: Sequence[CueDomain], index: Tensor) -> Tensor:
        """The target alone, in its domain's hue."""
        hue = torch.tensor([domain.hue for domain in domains])[index]
        return self.clean(self.image_split.images[ids], torch.Generator(), hue)

    def reference(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """Single objects in random hues."""
        return self.clean(self.image_split.images[ids], generator)
