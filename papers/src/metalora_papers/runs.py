"""The configuration of a run or a table, of whatever suite; imports no torch."""

from metalora_papers.config import CausalRunConfig, RunConfig, TableConfig, TextRunConfig, TextTableConfig
from metalora_papers.learner.config import LearnerRunConfig, LearnerTableConfig

Run = RunConfig | TextRunConfig | CausalRunConfig | LearnerRunConfig
Table = TableConfig | TextTableConfig | LearnerTableConfig
