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

    "val" is a seeded tenth of every class of the train files.

    Args:
        train: The train part of a set.
        test: Its test part.
        seen: Numbers of the classes that are trained on.

    Attributes:
        images: Images, uint8 (n, h, w).
        labels: Labels, int64 (n,).
        class_names: Names of the classes.
        classes: The numbers of the classes of each group: "seen", "unseen", "all".

    Raises:
        ValueError: `seen` has a class that does not exist, repeats one, or leaves no class unseen or seen.
    """

    def __init__(self, train: ImageSet, test: ImageSet, seen: tuple[int, ...]):
        self.images = torch.cat([train.images, test.images])
        self.labels = torch.cat([train.labels, test.labels])
        self.class_names = train.class_names
        numbers = range(len(train.class_names))
        if len(set(seen)) != len(seen) or not set(seen) < set(numbers) or not seen:
            count = len(numbers)
            raise ValueError(f"seen={seen}: expected some, not all, of the {count} classes 0..{count - 1}")
        unseen = tuple(label for label in numbers if label not in seen)
        self.classes = {"seen": tuple(seen), "unseen": unseen, "all": tuple(numbers)}
        self._ids = self._part(len(train.labels))

    def _part(self, n_train: int) -> dict[tuple[str, int], Tensor]:
        """Return the ids (n,) of every (split, class); the first n_train images are those of the train files."""
        generator = torch.Generator().manual_seed(VAL_SEED)
        ids = {}
        for label in self.classes["all"]:
            rows = (self.labels == label).nonzero()[:, 0]
            train, test = rows[rows < n_train], rows[rows >= n_train]
            # The generator serves the classes in order: the parts of a class depend on the classes before it.
            train = train[torch.randperm(len(train), generator=generator)]
            n_val = round(VAL_SHARE * len(train))
            ids["val", label] = train[:n_val]
            ids["train", label] = train[n_val:]
            ids["test", label] = test
        return ids

    def ids(self, split: str, classes: str = "all") -> Tensor:
        """Return all ids of a split and a group of classes, int64 (n,), ascending."""
        check_choice("split", split, SPLITS)
        check_choice("group of classes", classes, CLASS_GROUPS)
        return torch.cat([self._ids[split, label] for label in self.classes[classes]]).sort().values

    def draw_labels(self, classes: str, n: int, generator: torch.Generator) -> Tensor:
        """Draw n classes of a group, uniformly and independently, int64 (n,)."""
        check_choice("group of classes", classes, CLASS_GROUPS)
        group = torch.tensor(self.classes[classes])
        return group[torch.randint(len(group), (n,), generator=generator)]

    def draw(self, split: str, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an id for each label (n,), int64 (n,); an id repeats only if a class has too few images."""
        no_labels = labels[:0]
        return self.draw_disjoint(split, labels, no_labels, generator)[0]

    def draw_disjoint(
        self, split: str, first: Tensor, second: Tensor, generator: torch.Generator, repeat: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Draw ids for two lists of labels such that no id is in both.

        Args:
            split: "train", "val" or "test".
            first: Labels (n1,).
            second: Labels (n2,).
            generator: The generator of the draws.
            repeat: Allow a class with too few images: it is parted in proportion, and its ids repeat within a list,
                never across.

        Returns:
            Ids (n1,) and (n2,).

        Raises:
            ValueError: A class has too few images, if `repeat` is False; a class has a single image that both lists
                need.
        """
        check_choice("split", split, SPLITS)
        ids = torch.empty_like(first), torch.empty_like(second)
        for label in torch.cat([first, second]).unique().tolist():
            rows = [(labels == label).nonzero()[:, 0] for labels in (first, second)]
            need = [len(row) for row in rows]
            order = self._ids[split, label]
            # A class is shuffled once for both lists: the first ids go to one, the others to the other.
            order = order[torch.randperm(len(order), generator=generator)]
            parts = self._cut(order, need, split, label, repeat)
            for target, row, part in zip(ids, rows, parts, strict=True):
                if len(row):  # otherwise the part may be empty, and has no length to wrap around
                    target[row] = part[torch.arange(len(row)) % len(part)]
        return ids

    def draw_bank(
        self, split: str, classes: str, per_class: int, n_query: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw a bank and queries without a common image.

        Args:
            split: "train", "val" or "test".
            classes: "seen", "unseen" or "all".
            per_class: Images of each class in the bank.
            n_query: Number of queries; their classes are uniform.
            generator: The generator of the draws.

        Returns:
            Ids of the bank (classes * per_class,) and of the queries (n_query,); no id occurs twice.

        Raises:
            ValueError: A class has too few images.
        """
        wanted = self.draw_labels(classes, n_query, generator)
        bank = torch.tensor(self.classes[classes]).repeat_interleave(per_class)  # (classes * per_class,)
        return self.draw_disjoint(split, bank, wanted, generator, repeat=False)

    def _cut(self, order: Tensor, need: list[int], split: str, label: int, repeat: bool) -> tuple[Tensor, Tensor]:
        """Part the shuffled ids (n,) of a class into those of the two lists, which need so many of them."""
        available, wanted = len(order), sum(need)
        if wanted <= available:
            return order[: need[0]], order[need[0] :]
        if not repeat or available < sum(count > 0 for count in need):
            name = self.class_names[label]
            raise ValueError(f"class {name!r} has {available} {split} images, {wanted} different ones are needed")
        n_first = available * need[0] // wanted  # in proportion
        if all(need):
            n_first = min(max(n_first, 1), available - 1)  # at least one image for each list
        return order[:n_first], order[n_first:]


def load_image_split(
    source: str, seen: tuple[int, ...] | None = None, root: str | Path | None = None, size: int = SIZE
) -> ImageSplit:
    """Load the base images of a set; errors as `load_image_set` and `ImageSplit`.

    Args:
        source: Name of the set.
        seen: Numbers of the classes to train on; None for the first 60 %, which are six of ten.
        root: As `load_image_set`.
        size: Height and width of the images.
    """
    train, test = (load_image_set(source, split, root, size) for split in ("train", "test"))
    if seen is None:
        seen = tuple(range(max(1, round(0.6 * len(train.class_names)))))
    return ImageSplit(train, test, seen)
