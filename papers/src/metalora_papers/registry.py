"""The suites by name: which configuration a run's file holds, and what makes its suite. Imports no torch."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metalora._util.suggest import nearest
from metalora.config import from_dict, read_yaml
from metalora_papers.config import CausalRunConfig, RunConfig, TextRunConfig
from metalora_papers.learner.config import LearnerRunConfig
from metalora_papers.metalora.continuation_config import ContinuationRunConfig
from metalora_papers.new_task.config import NewTaskRunConfig
from metalora_papers.runs import Run
from metalora_papers.tenslora.config import ImageRunConfig

if TYPE_CHECKING:
    from torch import nn

    from metalora_papers.suite import Suite


@dataclass(frozen=True)
class SuiteEntry:
    """A suite before anything heavy is imported.

    Attributes:
        config: The class of its configuration.
        loader: "module:function", a function from a checked configuration to a `Suite`.
    """

    config: type[Run]
    loader: str

    def load(self, run: Run) -> Suite:
        """Load the data and the frozen model of a run."""
        module, _, function = self.loader.partition(":")
        suite: Suite = getattr(importlib.import_module(module), function)(run)
        return suite


_EPISODES = SuiteEntry(RunConfig, "metalora_papers.metalora.vision:load_episodes")
_DOMAINS = SuiteEntry(RunConfig, "metalora_papers.metalora.vision:load_domains")
_TEXT = SuiteEntry(TextRunConfig, "metalora_papers.metatt.text:TextSuite")
_ATTRIBUTES = SuiteEntry(LearnerRunConfig, "metalora_papers.learner.attribute_data:load")
_CAUSAL = SuiteEntry(CausalRunConfig, "metalora_papers.metatt.causal:CausalSuite")
_NEW_TASK = SuiteEntry(NewTaskRunConfig, "metalora_papers.new_task.suite:load")
SUITES: dict[str, SuiteEntry] = {
    "attributes": _EPISODES,
    "cue": _DOMAINS,
    "shift": _DOMAINS,
    "natural": _DOMAINS,
    "news": _TEXT,
    "glue": _TEXT,
    "commonsense": _CAUSAL,
    "continuation": SuiteEntry(ContinuationRunConfig, "metalora_papers.metalora.continuation:ContinuationSuite"),
    "images": SuiteEntry(ImageRunConfig, "metalora_papers.tenslora.images:ImageSuite"),
    "learner-attributes": _ATTRIBUTES,
    "learner-emoji": SuiteEntry(LearnerRunConfig, "metalora_papers.learner.item_data:load_emoji_suite"),
    "learner-texts": SuiteEntry(LearnerRunConfig, "metalora_papers.learner.item_data:load_text_suite"),
    "new-task-images": _NEW_TASK,
    "new-task-texts": _NEW_TASK,
    "new-task-throughput": _NEW_TASK,
}


def load_run(path: str | Path) -> Run:
    """Read the configuration of a run from a YAML file; its field `suite` says which class it is.

    Args:
        path: The file. Without the field `suite` it is a run of suite "attributes".

    Returns:
        The configuration.

    Raises:
        ValueError: An empty file, an unknown suite, an unknown field, or a value of the wrong type.
    """
    values = read_yaml(path)
    if values == {}:
        raise ValueError(f"{path}: the file is empty; expected a run, such as one of `metalora-papers recipe NAME`")
    suite = values.get("suite", "attributes") if isinstance(values, dict) else "attributes"
    if not isinstance(suite, str) or suite not in SUITES:
        raise ValueError(f"{path}.suite: unknown choice {suite!r}{nearest(str(suite), SUITES)}")
    return from_dict(SUITES[suite].config, values, str(path))


def open_suite(run: Run) -> Suite:
    """Load the data and the frozen model of a run; ValueError for settings that cannot work, before anything else."""
    return SUITES[run.suite].load(run)


def load_base(path: str) -> tuple[nn.Module, Any]:
    """Return the frozen base of a run's file and its tokenizer (None for images).

    This is the entry point of `--model run:RUN.yaml` of the command `metalora`.
    """
    suite = open_suite(load_run(path))
    return suite.model, suite.tokenizer


def score(run: Run, adapter: Path | None) -> dict[str, Any]:
    """Score a saved adapter, with the heads in its file, on the data of a run.

    Args:
        run: The configuration.
        adapter: The adapter file; None scores the frozen model.

    Returns:
        The scores by name, as in the results of the run's row.

    Raises:
        ValueError: The run trains heads or the encoder without an adapter (no file holds them), or the file is not
            an adapter of this model.
    """
    from metalora.io.adapter_file import load, read

    if run.trains_unsaved_weights(adapter_is_given=adapter is not None):
        raise ValueError(
            "eval: this run trains weights without an adapter (a head, or full: true) and no file holds "
            "them; its scores are in the row that `train` wrote"
        )
    if adapter is not None:
        description, _ = read(adapter)  # a missing file must be reported before a backbone is pre-trained
    suite = open_suite(run)
    if adapter is None:
        return suite.evaluate(None)
    # The user has named an extractor in the run; one that the file alone names is not downloaded.
    named = description["config"]["condition"].get("extractor")
    is_named_by_run = run.adapter is not None and named == run.adapter.condition.extractor
    loaded = load(suite.model, adapter, extra_module=suite.extra_modules(), allow_download=is_named_by_run)
    suite.prepare(loaded, training=False)
    return suite.evaluate(loaded)
