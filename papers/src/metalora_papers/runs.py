"""The configuration of a run, of whatever suite; imports no torch."""

from metalora_papers.config import CausalRunConfig, RunConfig, TextRunConfig
from metalora_papers.learner.config import LearnerRunConfig

Run = RunConfig | TextRunConfig | CausalRunConfig | LearnerRunConfig
