"""How large draws are, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass

from metalora.learner.data.label_sets import LEAST_SUPPORT


@dataclass(frozen=True)
class EpisodeSettings:
    """The sizes and the mix of draws.

    Attributes:
        support: Items of a support set. A small pool is divided in the same proportion.
        query: Items whose labels are predicted.
        label_sets: Label sets of a draw, which share a forward pass.
        procedural: Probability that a label set is procedural and not one of the labelled notions.
        class_episodes: Probability that the items of a draw are all of a few classes of a notion, instead of any.
        ways: The fewest and the most classes of a class episode.

    Raises:
        ValueError: A setting is out of its range.

    Example:
        >>> EpisodeSettings().sizes(54)
        (30, 24)
    """

    support: int = 60
    query: int = 48
    label_sets: int = 6
    procedural: float = 0.5
    class_episodes: float = 0.2
    ways: tuple[int, int] = (2, 6)

    def __post_init__(self) -> None:
        if self.support < 2 * LEAST_SUPPORT or self.query < 1 or self.label_sets < 1:
            raise ValueError(
                f"support {self.support}, query {self.query}, label_sets {self.label_sets}: expected at least "
                f"{2 * LEAST_SUPPORT}, 1 and 1"
            )
        for name in ("procedural", "class_episodes"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a probability")
        if not 2 <= self.ways[0] <= self.ways[1]:
            raise ValueError(f"ways {self.ways}: expected (fewest, most), at least 2 classes")

    def sizes(self, available: int) -> tuple[int, int]:
        """Return the numbers of support items and queries for a pool with so many items."""
        if available >= self.support + self.query:
            return self.support, self.query
        query = max(1, available * self.query // (self.support + self.query))
        return available - query, query
