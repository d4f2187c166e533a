"""Base images with ids, parted into train, val and test and into seen and unseen classes."""

from pathlib import Path

import torch
from torch import Tensor

from metalora._util.suggest import check_choice
from metalora_papers.metalora.image_sources import SIZE, ImageSet, load_image_set

SPLITS = ("train", "val", "test")
CLASS_GROUPS = ("seen", "unseen", "all")
VAL_SHARE = 0.1
VAL_SEED = 7


class ImageSplit:
    """The base images of one or more suites; an id is a row of `images`, and no id is in two splits.

    `images` uint8 (n, h, w), `labels` int64 (n,). "val" is a seeded tenth of every class of the train files.
    ValueError: `seen` names a class that does not exist, repeats one, or leaves no class unseen or seen.
    """

    def __init__(self, train: ImageSet, test: ImageSet, seen: tuple[int, ...]):
        self.images = torch.cat([train.images, test.images])
        self.labels = torch.cat([train.labels, test.labels])
        self.class_names = train.class_names
        known = range(len(train.class_names))
        if len(set(seen)) != len(seen) or not set(seen) < set(known) or not seen:
            raise ValueError(f"seen={seen}: expected some, not all, of the {len(known)} classes 0..{len(known) - 1}")
        unseen = tuple(label for label in known if label not in seen)
        self.classes = {"seen": tuple(seen), "unseen": unseen, "all": tuple(known)}
        self._ids = self._part(len(train.labels))

    def _part(self, n_train: int) -> dict[tuple[str, int], Tensor]:
        generator = torch.Generator().manual_seed(VAL_SEED)
        ids = {}
        for label in self.classes["all"]:
            rows = (self.labels == label).nonzero()[:, 0]
            train, test = rows[rows < n_train], rows[rows >= n_train]
            train = train[torch.randperm(len(train), generator=generator)]
            cut = round(VAL_SHARE * len(train))
            ids["val", label], ids["train", label], ids["test", label] = train[:cut], train[cut:], test
        return ids

    def ids(self, split: str, classes: str = "all") -> Tensor:
        """All ids of a split and a group of classes, ascending."""
        check_choice("split", split, SPLITS)
        check_choice("group of classes", classes, CLASS_GROUPS)
        return torch.cat([self._ids[split, label] for label in self.classes[classes]]).sort().values

    def draw_labels(self, classes: str, n: int, generator: torch.Generator) -> Tensor:
        """Draw n classes of a group, uniformly and independently, int64 (n,)."""
        check_choice("group of classes", classes, CLASS_GROUPS)
        group = torch.tensor(self.classes[classes])
        return group[torch.randint(len(group), (n,), generator=generator)]

    def draw(self, split: str, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one id per label, (n,); an id repeats only when a class has fewer images than are asked of it."""
        nobody = labels[:0]
        return self.draw_disjoint(split, labels, nobody, generator)[0]

    def draw_disjoint(
        self, split: str, first: Tensor, second: Tensor, generator: torch.Generator, repeat: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw ids for two lists of labels, (n1,) and (n2,), such that no id is in both.

        A class with too few images is parted in proportion and its ids repeat within a list, never across;
        ValueError instead unless `repeat`, and always for a class with one image that both lists need.
        """
        check_choice("split", split, SPLITS)
        ids = torch.empty_like(first), torch.empty_like(second)
        for label in torch.cat([first, second]).unique().tolist():
            rows = [(labels == label).nonzero()[:, 0] for labels in (first, second)]
            need = [len(row) for row in rows]
            order = self._ids[split, label]
            order = order[torch.randperm(len(order), generator=generator)]
            parts = self._cut(order, need, split, label, repeat)
            for target, row, part in zip(ids, rows, parts, strict=True):
                if len(row):
                    target[row] = part[torch.arange(len(row)) % len(part)]
        return ids

    def draw_bank(
        self, split: str, classes: str, per_class: int, n_query: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw `per_class` ids of every class and n_query other ids, classes uniform; no id twice, or ValueError."""
        wanted = self.draw_labels(classes, n_query, generator)
        bank = torch.tensor(self.classes[classes]).repeat_interleave(per_class)
        return self.draw_disjoint(split, bank, wanted, generator, repeat=False)

    def _cut(self, order: Tensor, need: list[int], split: str, label: int, repeat: bool) -> tuple[Tensor, Tensor]:
        available, wanted = len(order), sum(need)
        if wanted <= available:
            return order[: need[0]], order[need[0] :]
        if not repeat or available < sum(count > 0 for count in need):
            name = self.class_names[label]
            raise ValueError(f"class {name!r} has {available} {split} images, {wanted} different ones are needed")
        cut = available * need[0] // wanted
        if all(need):
            cut = min(max(cut, 1), available - 1)
        return order[:cut], order[cut:]


def load_image_split(
    source: str, seen: tuple[int, ...] | None = None, root: str | Path | None = None, size: int = SIZE
) -> ImageSplit:
    """The pool of an image set; see `load_image_set` for `root`, `size` and the errors.

    seen    class numbers to train on; None: the first six of ten, of another number the first 60 %
    """
    train, test = (load_image_set(source, split, root, size) for split in ("train", "test"))
    if seen is None:
        seen = tuple(range(max(1, round(0.6 * len(train.class_names)))))
    return ImageSplit(train, test, seen)
