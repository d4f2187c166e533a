"""Suite "learner-attributes": pictures with many notions, and a small backbone that knows the seen classes only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from metalora.learner.data import EpisodeSource, ProceduralNotions
from metalora.learner.features import StageFeatures
from metalora_papers.config import EpisodeConfig, RunConfig
from metalora_papers.learner.attribute_episodes import AttributeEpisodes
from metalora_papers.learner.config import LearnerRunConfig
from metalora_papers.learner.suite import LearnerSuite
from metalora_papers.learner.suites import LabelledEpisode, frozen_statistics
from metalora_papers.metalora.episode_suite import UNSEEN, EpisodeSuite
from metalora_papers.metalora.vision import load_episodes

TRAINED = ("class", "hue", "rotation", "frame", "position")
HELD_OUT = ("scale", "noise")


class AttributeData:
    """The pictures, the backbone and the test episodes of suite "attributes".

    Args:
        run: The configuration.
    """

    def __init__(self, run: LearnerRunConfig):
        self.run = run
        trained, held_out = run.trained or TRAINED, run.held_out or HELD_OUT
        episodes = EpisodeConfig(
            trained=trained,
            held_out=held_out,
            size=run.size,
            test_support=run.test_support,
            test_query=run.test_query,
            test_episodes=run.test_episodes,
        )
        base = RunConfig(
            suite="attributes",
            data=run.data,
            data_root=run.data_root,
            backbone=run.backbone,
            episodes=episodes,
            seed=run.seed,
            split=run.split,
        )
        self.suite: EpisodeSuite = load_episodes(base)
        self.trained = trained
        self.held_out = (*held_out, UNSEEN)

    @property
    def model(self) -> nn.Module:
        """The frozen backbone, pre-trained on the seen classes."""
        return self.suite.model

    def source(self, features: StageFeatures, label_sets: int) -> EpisodeSource:
        """Return the training episodes, with procedural notions of the frozen statistics."""
        run = self.run
        statistics = frozen_statistics(features, self.calibration_batches())
        return AttributeEpisodes(
            self.suite.images,
            self.suite.normalised,
            self.trained,
            ProceduralNotions(statistics),
            lambda inputs: frozen_statistics(features, [inputs]),
            support=run.support,
            query=run.query,
            label_sets=label_sets,
            procedural=run.procedural,
            class_episodes=run.class_episodes,
        )

    def test_episode(self, task: str, number: int) -> LabelledEpisode:
        """Return a test episode, the same as that of suite "attributes"."""
        episode = self.suite.test_episode(task, number)
        return LabelledEpisode(episode.support_x, episode.support_y, episode.query_x, episode.query_y)

    def validation(self) -> AttributeData:
        """Return the same data with the test episodes of the validation split."""
        return AttributeData(dataclasses.replace(self.run, split="val"))

    def calibration_batches(self) -> Sequence[Tensor]:
        """Return batches of the pre-training."""
        return self.suite.calibration_batches()


def load(run: LearnerRunConfig) -> LearnerSuite:
    """Load suite "learner-attributes"."""
    return LearnerSuite(AttributeData(run), run)
