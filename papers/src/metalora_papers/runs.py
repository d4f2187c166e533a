"""The configuration of a run or a table, of whatever suite; imports no torch."""

from metalora_papers.config import CausalRunConfig, RunConfig, TableConfig, TextRunConfig, TextTableConfig
from metalora_papers.learner.config import LearnerRunConfig, LearnerTableConfig
from metalora_papers.metalora.continuation_config import ContinuationRunConfig, ContinuationTableConfig

Run = RunConfig | TextRunConfig | CausalRunConfig | ContinuationRunConfig | LearnerRunConfig
Table = TableConfig | TextTableConfig | ContinuationTableConfig | LearnerTableConfig

FULL = "every weight"
"""The row of full fine-tuning; `full` on the command line."""
ALIASES = {"full": FULL}
FULL_LR_RATIO = 0.01
"""Training every weight takes a hundredth of an adapter's learning rate."""


def check_full(run: TextRunConfig | RunConfig | CausalRunConfig) -> None:
    """Raise a ValueError for a run that trains every weight and has an adapter, too."""
    if run.full and run.adapter is not None:
        raise ValueError("full: true trains the frozen network itself, so there can be no adapter")
