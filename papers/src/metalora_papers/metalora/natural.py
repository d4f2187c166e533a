"""Suite "natural": real image sets and scripts as domains, with whole sets held out."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.domain_images import DomainImages
from metalora_papers.metalora.drawing import to_unit
from metalora_papers.metalora.glyphs import SCRIPTS, load_glyphs
from metalora_papers.metalora.image_sources import SOURCES, ImageSet, load_image_set
from metalora_papers.metalora.image_split import ImageSplit

SETS = (*SOURCES, *SCRIPTS)
TRAIN_SETS = ("mnist-5k", "glyphs-latin", "glyphs-latin-lower", "glyphs-cyrillic")
VAL_SETS = ("glyphs-greek",)
TEST_SETS = ("digits", "fashion-mnist")
SEEN_SHARE = 0.6


class NaturalImages(DomainImages[str]):
    """A domain is the name of a set; the first 60 % of every set's classes are the seen ones.

    Ids and labels are numbered through all sets, so that no two sets share one. There are no clean images: the
    teacher's view and the clean bank are the images themselves, in three equal channels.
    ValueError: unknown set or split, a set in two splits, missing files or fonts.
    """

    has_clean = False

    def __init__(
        self,
        train: tuple[str, ...] = TRAIN_SETS,
        val: tuple[str, ...] = VAL_SETS,
        test: tuple[str, ...] = TEST_SETS,
        *,
        root: str | Path | None = None,
        font_dir: str | Path | None = None,
    ):
        self.sets = {"train": train, "val": val, "test": test}
        names = (*train, *val, *test)
        if len(set(names)) != len(names):
            raise ValueError(f"a set occurs twice in train={train}, val={val}, test={test}")
        self.image_splits: dict[str, ImageSplit] = {}
        self.first_id: dict[str, int] = {}
        self.first_label: dict[str, int] = {}
        n_images = n_classes = 0
        for name in names:
            train_files, test_files = (_load(name, split, root, font_dir) for split in ("train", "test"))
            seen = tuple(range(round(SEEN_SHARE * len(train_files.class_names))))
            image_split = ImageSplit(train_files, test_files, seen)
            self.image_splits[name], self.first_id[name], self.first_label[name] = image_split, n_images, n_classes
            n_images += len(image_split.labels)
            n_classes += len(image_split.class_names)
        self.images = torch.cat([image_split.images for image_split in self.image_splits.values()])
        self.labels = torch.cat(
            [image_split.labels + self.first_label[name] for name, image_split in self.image_splits.items()]
        )

    def sample_domain(self, split: str, generator: torch.Generator) -> str:
        """Draw one of the split's sets; ValueError if the split has none."""
        check_choice("split", split, tuple(self.sets))
        names = self.sets[split]
        if not names:
            raise ValueError(f"the suite has no {split} sets")
        return names[int(torch.randint(len(names), (), generator=generator))]

    def draw_ids(
        self, domains: Sequence[str], index: Tensor, split: str, classes: str, generator: torch.Generator
    ) -> Tensor:
        ids = torch.empty_like(index)
        for name in dict.fromkeys(domains):
            numbers = torch.tensor([number for number, domain in enumerate(domains) if domain == name])
            rows = torch.isin(index, numbers).nonzero()[:, 0]
            image_split = self.image_splits[name]
            labels = image_split.draw_labels(classes, len(rows), generator)
            ids[rows] = image_split.draw(split, labels, generator) + self.first_id[name]
        return ids

    def draw_bank(
        self, domain: str, split: str, classes: str, per_class: int, n_query: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """ValueError also for a domain that is not one of the suite's sets."""
        check_choice("set", domain, tuple(self.image_splits))
        bank, query = self.image_splits[domain].draw_bank(split, classes, per_class, n_query, generator)
        return bank + self.first_id[domain], query + self.first_id[domain]

    def labels_of(self, ids: Tensor) -> Tensor:
        return self.labels[ids]

    def companions(self, split: str, taken: Tensor) -> Tensor:
        """None: no other image appears beside a base image."""
        return taken[:0]

    def shifted(
        self, ids: Tensor, domains: Sequence[str], index: Tensor, companions: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The images as they are; nothing is drawn."""
        return self._plain(ids)

    def clean_like(self, ids: Tensor, domains: Sequence[str], index: Tensor) -> Tensor:
        """The images as they are."""
        return self._plain(ids)

    def reference(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The images as they are."""
        return self._plain(ids)

    def _plain(self, ids: Tensor) -> Tensor:
        return to_unit(self.images[ids])[:, None].repeat(1, 3, 1, 1)


def _load(name: str, split: str, root: str | Path | None, font_dir: str | Path | None) -> ImageSet:
    check_choice("set", name, SETS)
    return load_glyphs(name, split, font_dir) if name in SCRIPTS else load_image_set(name, split, root)
