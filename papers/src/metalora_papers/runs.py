"""The configuration of a run or a table, of whatever suite; imports no torch."""

from collections.abc import Mapping
from typing import Any

from metalora_papers.config import CausalRunConfig, RunConfig, TableConfig, TextRunConfig, TextTableConfig
from metalora_papers.learner.config import LearnerRunConfig, LearnerTableConfig
from metalora_papers.metalora.continuation_config import ContinuationRunConfig, ContinuationTableConfig
from metalora_papers.new_task.config import NewTaskRunConfig, NewTaskTableConfig
from metalora_papers.tenslora.config import ImageRunConfig, ImageTableConfig

Run = (
    RunConfig
    | TextRunConfig
    | CausalRunConfig
    | ContinuationRunConfig
    | LearnerRunConfig
    | ImageRunConfig
    | NewTaskRunConfig
)
Table = (
    TableConfig | TextTableConfig | ContinuationTableConfig | LearnerTableConfig | ImageTableConfig | NewTaskTableConfig
)

FULL = "every weight"
"""The row of full fine-tuning; `full` on the command line."""
ALIASES = {"full": FULL}
FULL_LR_RATIO = 0.01
"""Training every weight takes a hundredth of an adapter's learning rate."""


def rate_of_table(config: Mapping[str, Any]) -> float:
    """Return the learning rate of the table that a run was made for, which full fine-tuning takes a hundredth of.

    Args:
        config: The configuration in a row.

    Example:
        >>> rate_of_table({"full": True, "train": {"lr": 0.003 * FULL_LR_RATIO}})
        0.003
    """
    rate: float = config["train"]["lr"]
    # Rounded, because 0.01 is no exact binary number: a rate that was chosen must be found again.
    return round(rate / FULL_LR_RATIO, 12) if config.get("full") else rate


def check_full(run: TextRunConfig | RunConfig | CausalRunConfig | ImageRunConfig) -> None:
    """Raise a ValueError for a run that trains every weight and has an adapter, too."""
    if run.full and run.adapter is not None:
        raise ValueError("full: true trains the frozen network itself, so there can be no adapter")
