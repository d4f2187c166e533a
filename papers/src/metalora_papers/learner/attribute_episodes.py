"""Episodes of suite "attributes" for a learner: pictures that carry many notions at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metalora.learner.data import Draw, ProceduralNotions
from metalora_papers.metalora.attributes import AttributeImages

CLASS_WAYS = 3
BLENDED = 0.5  # share of the class episodes whose classes are pairs of seen classes


class AttributeEpisodes:
    """Draws training episodes; an `EpisodeSource`.

    Args:
        images: The pictures.
        normalised: What brings pictures to what the backbone takes.
        trained: The notions that are trained.
        notions: Procedural notions.
        statistics: Prepared pictures -> statistics of the frozen network, (n, d).
        support: Size of a support set.
        query: Number of queries.
        label_sets: Tasks of a draw.
        procedural: Probability that a task is a procedural notion.
        class_episodes: Probability of an episode of a few classes, if "class" is trained.
    """

    def __init__(
        self,
        images: AttributeImages,
        normalised: Callable[[Tensor], Tensor],
        trained: tuple[str, ...],
        notions: ProceduralNotions,
        statistics: Callable[[Tensor], Tensor],
        *,
        support: int,
        query: int,
        label_sets: int,
        procedural: float,
        class_episodes: float,
    ):
        self.images, self.normalised = images, normalised
        self.attributes = tuple(name for name in trained if name != "class")
        self.class_episodes = class_episodes if "class" in trained and procedural < 1 else 0.0
        self.notions, self.statistics = notions, statistics
        self.support, self.query, self.label_sets, self.procedural = support, query, label_sets, procedural

    def draw(self, generator: torch.Generator) -> Draw:
        """Draw one episode: a few classes, or several notions of the same pictures."""
        seed = int(torch.randint(2**31, (), generator=generator))
        if float(torch.rand((), generator=generator)) < self.class_episodes:
            return self._classes(seed, generator)
        count = self.support + self.query
        batch = self.images.batch("train", count, seed, "seen")
        inputs = self.normalised(batch.images)
        statistics = self.statistics(inputs)
        label_sets: list[Tensor] = []
        names: list[str] = []
        while len(label_sets) < self.label_sets:
            procedural = not self.attributes or float(torch.rand((), generator=generator)) < self.procedural
            if procedural:
                name, labels = "procedural", self.notions.labels(inputs, statistics, self.support, generator)
            else:
                name = self.attributes[int(torch.randint(len(self.attributes), (), generator=generator))]
                labels = batch.values[name]
            if (labels >= 0).any():
                label_sets.append(labels)
                names.append(name)
        return Draw(inputs, label_sets, self.support, statistics, names, 0, batch.ids)

    def _classes(self, seed: int, generator: torch.Generator) -> Draw:
        blended = float(torch.rand((), generator=generator)) < BLENDED
        episode = self.images.episode(
            "class", "train", self.support, self.query, seed, ways=CLASS_WAYS, blended=blended
        )
        inputs = self.normalised(torch.cat([episode.support_x, episode.query_x]))
        labels = torch.cat([episode.support_y, episode.query_y])
        ids = torch.cat([episode.support_ids, episode.query_ids])
        return Draw(inputs, [labels], self.support, self.statistics(inputs), ["class"], 0, ids)
