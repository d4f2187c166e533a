"""The configuration of a run or a table, of whatever suite; imports no torch."""

from metalora_papers.config import CausalRunConfig, RunConfig, TableConfig, TextRunConfig, TextTableConfig
from metalora_papers.learner.config import LearnerRunConfig, LearnerTableConfig
from metalora_papers.metalora.continuation_config import ContinuationRunConfig, ContinuationTableConfig
from metalora_papers.tenslora.config import ImageRunConfig, ImageTableConfig

Run = RunConfig | TextRunConfig | CausalRunConfig | ContinuationRunConfig | LearnerRunConfig | ImageRunConfig
Table = TableConfig | TextTableConfig | ContinuationTableConfig | LearnerTableConfig | ImageTableConfig
