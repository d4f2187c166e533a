"""A search in its folder: what a trial trains, the choices, and the trials."""

from __future__ import annotations

from pathlib import Path

from metalora.learner.sweeps.config import SweepConfig
from metalora.learner.sweeps.description import describe
from metalora.learner.sweeps.jobs import Job
from metalora.learner.sweeps.space import Space
from metalora.learner.sweeps.study import TrialStudy, pruner_for
from metalora.learner.sweeps.trial import free_memory, run_trial


class Search:
    """A search as one process sees it; several processes may have the same folder.

    Args:
        folder: The folder of the search.
        job: What a trial trains.
        config: The budget and the choices.
        most_deaths: A trial whose process has died so many times has failed; None: it is always done again.

    Raises:
        ValueError: The choices do not fit the network, or the folder is of another search or has other files.
    """

    def __init__(self, folder: Path, job: Job, config: SweepConfig, most_deaths: int | None = None):
        self.folder, self.job, self.config = folder, job, config
        self.space = Space(job.backbone.model, job.adapter, job.usual_rate, config, job.plain_methods)
        describe(folder, job, config, self.space)
        pruner = pruner_for(job.validations, config.prune)
        first = self.space.first_parameters()
        self.study = TrialStudy(folder, self.space.suggest, first, config.seed, pruner, most_deaths)

    def run_next_trial(self) -> None:
        """Do the next trial; nothing happens if the folder has enough trials."""
        with self.study.next_trial(self.config.trials) as begun:
            if begun is not None:
                run_trial(self.study, self.job, *begun)
        free_memory()
        self.study.remove_worse()
