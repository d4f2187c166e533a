"""Suite "attributes": one image carries many attributes, and a task says which of them makes two images similar."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.drawing import (
    add_noise,
    edge_distance,
    gaussian_matrices,
    hue_to_rgb,
    resampling_matrices,
    to_unit,
)
from metalora_papers.metalora.image_sources import SIZE, SOURCES
from metalora_papers.metalora.image_split import load_image_split

# Lengths are in pixels of a 32×32 image and grow with the size.
HUES = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)
OBJECT_WIDTHS = (10.0, 14.0, 18.0)
NOISE_LEVELS = (0.0, 0.08, 0.16)
CENTRES = ((-5.0, -5.0), (-5.0, 5.0), (5.0, -5.0), (5.0, 5.0))  # (row, column) from the middle
BACKGROUNDS = (0.0, 0.12, 0.24, 0.36)
STRIPE_DIRECTIONS = ((0.0, 1.0), (1.0, 0.0), (0.7071, 0.7071), (0.7071, -0.7071))
STRIPE_PERIOD, STRIPE_HEIGHT = 5.0, 0.2
BLURS = (0.0, 0.9, 1.8)
OPACITY = 3.0  # dark parts of an object hide the ground too
BRIGHTNESSES = (1.0, 0.7, 0.45)
FRAME_WIDTHS = (1.0, 2.0, 3.0)
DOT_OFFSET, DOT_WIDTH = 4, 3

VALUE_COUNTS = {
    "hue": len(HUES), "rotation": 4, "frame": len(HUES), "scale": len(OBJECT_WIDTHS), "noise": len(NOISE_LEVELS),
    "position": len(CENTRES), "background": len(BACKGROUNDS), "stripes": len(STRIPE_DIRECTIONS), "blur": len(BLURS),
    "dots": 4, "brightness": len(BRIGHTNESSES), "frame_width": len(FRAME_WIDTHS),
}  # fmt: skip
DEFAULT_ATTRIBUTES = ("class", "hue", "rotation", "frame", "scale", "noise", "position")


@dataclass(frozen=True)
class Batch:
    """Images with every attribute.

    Attributes:
        images: Images, float32 (n, 3, S, S).
        values: The values of every attribute, "class" included, int64 (n,) by name.
        ids: Ids of the base images, int64 (n,).
    """

    images: Tensor
    values: dict[str, Tensor]
    ids: Tensor


@dataclass(frozen=True)
class Episode:
    """A labelled support set, and queries from other base images.

    Attributes:
        support_x: Images, float32 (n_support, 3, S, S).
        support_y: Labels, int64 (n_support,), in 0..values-1.
        query_x: Images, float32 (n_query, 3, S, S).
        query_y: Labels, int64 (n_query,).
        attribute: The attribute whose values are the labels.
        support_ids: Ids of the base images, int64 (n_support,).
        query_ids: Ids of the base images, int64 (n_query,).
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    attribute: str
    support_ids: Tensor
    query_ids: Tensor


class AttributeImages:
    """Images that carry the named attributes; all other attributes are drawn as a constant.

    Args:
        source: Name of the set of base images.
        size: Height and width.
        seen: Numbers of the classes to train on; None for the first 60 %.
        attributes: The attributes.
        root: Folder of the set, as `load_image_set`.

    Raises:
        ValueError: An unknown source or attribute, a repeated attribute, an unusable `seen`, missing files.
    """

    def __init__(
        self,
        source: str,
        *,
        size: int = 32,
        seen: tuple[int, ...] | None = None,
        attributes: tuple[str, ...] = DEFAULT_ATTRIBUTES,
        root: str | Path | None = None,
    ):
        for name in attributes:
            check_choice("attribute", name, ("class", *VALUE_COUNTS))
        if len(set(attributes)) != len(attributes):
            raise ValueError(f"attributes={attributes}: an attribute is named twice")
        # A folder's or the Hub's images come as large as an object is drawn; the small sets have one size.
        drawn = SIZE if source in SOURCES else max(SIZE, round(max(OBJECT_WIDTHS) * size / 32))
        self.image_split = load_image_split(source, seen, root, drawn)
        self.size = size
        counts = {"class": len(self.image_split.class_names), **VALUE_COUNTS}
        self.attributes = {name: counts[name] for name in attributes}

    def batch(self, split: str, n: int, seed: int, classes: str = "all") -> Batch:
        """Draw n images with every attribute uniform and independent of the others.

        Args:
            split: "train", "val" or "test".
            n: Number of images.
            seed: Seed of all draws.
            classes: Group of classes: "seen", "unseen" or "all".
        """
        generator = torch.Generator().manual_seed(seed)
        values = self._draw_values(n, classes, generator)
        ids = self.image_split.draw(split, values["class"], generator)
        return Batch(self.render(self.image_split.images[ids], values, generator), values, ids)

    def episode(
        self,
        attribute: str,
        split: str,
        n_support: int,
        n_query: int,
        seed: int,
        classes: str = "seen",
        ways: int = 0,
        blended: bool = False,
    ) -> Episode:
        """Draw a task: a support set balanced over the attribute's values, and queries uniform over them.

        Everything but the attribute varies independently. Support and query never share a base image; base images
        repeat, within one of the two, only if a class of the split has too few.

        Args:
            attribute: The attribute whose values are the labels.
            split: "train", "val" or "test".
            n_support: Number of support images.
            n_query: Number of queries.
            seed: Seed of all draws.
            classes: Group of classes: "seen", "unseen" or "all".
            ways: Draw so many of the values, so that a task does not always have the same set of them; 0 for all.
            blended: The values of a class task are pairs of classes, one over the mirror image of the other: n² classes
                out of n.

        Raises:
            ValueError: An attribute that the suite does not have, or fewer than two support images for each value.
        """
        check_choice("attribute", attribute, tuple(self.attributes))
        generator = torch.Generator().manual_seed(seed)
        values = self._draw_values(n_support + n_query, classes, generator)
        group = self.image_split.classes[classes] if attribute == "class" else range(self.attributes[attribute])
        levels = torch.tensor(tuple(group))
        if blended:
            levels = torch.cartesian_prod(levels, levels)  # (n², 2)
        ways = ways or len(group)
        if ways < len(levels):
            levels = levels[torch.randperm(len(levels), generator=generator)[:ways]]
        if n_support < 2 * len(levels):
            raise ValueError(f"n_support={n_support}: {attribute!r} needs at least {2 * len(levels)}, two a value")
        labels = torch.randint(len(levels), (n_support + n_query,), generator=generator)
        labels[:n_support] = _balanced(n_support, len(levels), generator)
        values[attribute] = levels[labels, 0] if blended else levels[labels]

        def draw_ids(classes_of_images: Tensor) -> Tensor:
            support, query = classes_of_images[:n_support], classes_of_images[n_support:]
            return torch.cat(self.image_split.draw_disjoint(split, support, query, generator))

        ids = draw_ids(values["class"])
        base = self.image_split.images[ids]
        if blended:
            # Mirrored, so that a pair (a, b) is not the pair (b, a).
            mirrored = self.image_split.images[draw_ids(levels[labels, 1])].flip(-1)
            base = torch.maximum(base, mirrored)
        images = self.render(base, values, generator)
        return Episode(
            images[:n_support], labels[:n_support], images[n_support:], labels[n_support:],
            attribute, ids[:n_support], ids[n_support:],
        )  # fmt: skip

    def _draw_values(self, n: int, classes: str, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the values of every attribute, int64 (n,), independently."""
        values = {"class": self.image_split.draw_labels(classes, n, generator)}
        for name, count in self.attributes.items():
            if name != "class":
                values[name] = torch.randint(count, (n,), generator=generator)
        return values

    def render(self, images: Tensor, values: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Draw base images with the values of some attributes.

        An attribute without values is constant: white object, upright, middle-sized, central, bright and sharp, on
        plain black, in a grey frame two pixels wide, without dots or noise. "class" is carried by the image itself.

        Args:
            images: Base images, uint8 (n, h, w).
            values: Values of attributes, int64 (n,) by name.
            generator: The generator of dots and noise.

        Returns:
            Images, float32 (n, 3, S, S) in [0, 1].
        """
        for name in values:
            check_choice("attribute", name, ("class", *VALUE_COUNTS))
        n, unit = len(images), self.size / 32
        cover = self._cover(images, values)[:, None]  # (batch, 1, row, column)
        brightness = _pick(BRIGHTNESSES, values.get("brightness"), n, 1.0)
        colour = _colours(values.get("hue"), n, 1.0) * brightness[:, None]
        ground = self._ground(values, n)[:, None] * (1 - (OPACITY * cover).clamp(max=1))
        # (batch, 1, row, column) + (batch, 3, 1, 1) * (batch, 1, row, column)
        canvas = (ground + colour[:, :, None, None] * cover).clamp_(max=1)
        if "dots" in values:
            canvas = torch.maximum(canvas, self._dots(values["dots"], generator)[:, None])
        width = (_pick(FRAME_WIDTHS, values.get("frame_width"), n, 2.0) * unit).round()
        # The frame covers the dots and the object; noise, the last step, covers all.
        border = (edge_distance(self.size) < width[:, None, None])[:, None].float()
        frame = _colours(values.get("frame"), n, 0.5)[:, :, None, None]
        canvas = canvas * (1 - border) + frame * border
        if "noise" not in values:
            return canvas
        return add_noise(canvas, _pick(NOISE_LEVELS, values["noise"], n, 0.0), generator)

    def _cover(self, images: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Return how much of each pixel the rotated, scaled, moved and blurred object covers: (n, S, S) in [0, 1]."""
        n, unit = len(images), self.size / 32
        source = to_unit(images)
        if "rotation" in values:
            rotated = torch.stack([torch.rot90(source, turns, (1, 2)) for turns in range(4)])  # (turns, n, h, w)
            source = rotated[values["rotation"], torch.arange(n)]
        width = _pick(OBJECT_WIDTHS, values.get("scale"), n, 14.0) * unit
        offset = torch.zeros(n, 2)
        if "position" in values:
            offset = torch.tensor(CENTRES)[values["position"]] * unit
        centre = offset + self.size / 2
        # Scaling, moving and blurring are separable: matrices (n, S, h) for the rows and (n, S, w) for the columns.
        rows = resampling_matrices(source.shape[1], self.size, width, centre[:, 0])
        columns = resampling_matrices(source.shape[2], self.size, width, centre[:, 1])
        if "blur" in values:
            blur = gaussian_matrices(self.size, torch.tensor(BLURS) * unit)[values["blur"]]
            rows, columns = blur @ rows, blur @ columns
        return (rows @ source @ columns.mT).clamp_(0, 1)

    def _ground(self, values: Mapping[str, Tensor], n: int) -> Tensor:
        """Return tone and stripes behind the object: (n, S, S)."""
        tone = _pick(BACKGROUNDS, values.get("background"), n, 0.0)[:, None, None]
        if "stripes" not in values:
            return tone.expand(n, self.size, self.size)
        line = torch.arange(self.size) * (2 * torch.pi * 32 / (STRIPE_PERIOD * self.size))
        direction = torch.tensor(STRIPE_DIRECTIONS)
        # (direction, row, column): the stripes run across their direction.
        phase = direction[:, :1, None] * line[:, None] + direction[:, 1:, None] * line
        waves = STRIPE_HEIGHT * (0.5 + 0.5 * torch.sin(phase))
        return tone + waves[values["stripes"]]

    def _dots(self, counts: Tensor, generator: torch.Generator) -> Tensor:
        """Return white dots (n, S, S), as many as `counts` (n,) says, in random corners."""
        unit = self.size / 32
        line = torch.arange(self.size)
        start, width = round(DOT_OFFSET * unit), round(DOT_WIDTH * unit)
        near = (line >= start) & (line < start + width)
        ends = torch.stack([near, near.flip(0)])
        corners = (ends[:, None, :, None] & ends[None, :, None, :]).flatten(0, 1)  # (corner, row, column)
        rank = torch.rand(len(counts), 4, generator=generator).argsort(1).argsort(1)  # a permutation of the corners
        chosen = rank < counts[:, None]  # (batch, corner)
        return (chosen.float() @ corners.flatten(1).float()).reshape(-1, self.size, self.size)


def _pick(levels: tuple[float, ...], values: Tensor | None, n: int, constant: float) -> Tensor:
    """Return the level of each value (n,), or the constant (n,) without values."""
    return torch.full((n,), constant) if values is None else torch.tensor(levels)[values]


def _colours(values: Tensor | None, n: int, grey: float) -> Tensor:
    """Return the colour of each value, RGB (n, 3), or a grey (n, 3) without values."""
    return torch.full((n, 3), grey) if values is None else hue_to_rgb(torch.tensor(HUES))[values]


def _balanced(n: int, n_values: int, generator: torch.Generator) -> Tensor:
    """Return each value n // n_values times or once more (which ones is random), shuffled: int64 (n,)."""
    values = torch.randperm(n_values, generator=generator)[torch.arange(n) % n_values]
    return values[torch.randperm(n, generator=generator)]
