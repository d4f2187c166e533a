"""What a text task is, whatever corpus it comes from."""

from dataclasses import dataclass
from typing import Protocol

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class TextExamples:
    """Texts, second texts (none for a task on single sentences), and labels: class numbers, or scores."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    labels: tuple[float, ...]


class TextCorpus(Protocol):
    """Where the examples of some tasks come from."""

    def classes(self, task: str) -> int:
        """The number of classes of a task; 0 for scores. ValueError for an unknown task."""

    def examples(self, task: str, split: str, n: int, seed: int) -> TextExamples:
        """n examples of a split (at most as many as there are), the same for equal arguments."""
