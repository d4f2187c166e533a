"""A run's file is of the kind that its suite says."""

import subprocess
import sys
import typing
from pathlib import Path

import pytest

import metalora_papers
from metalora_papers.config import CausalRunConfig, RunConfig, TextRunConfig
from metalora_papers.learner.config import LearnerRunConfig
from metalora_papers.metalora.continuation_config import ContinuationRunConfig
from metalora_papers.new_task.config import SUITES as NEW_TASK_SUITES
from metalora_papers.new_task.config import NewTaskRunConfig
from metalora_papers.registry import SUITES, load_run, score
from metalora_papers.tenslora.config import ImageRunConfig

KINDS = {
    "seed: 1": RunConfig,
    "suite: attributes": RunConfig,
    "suite: natural": RunConfig,
    "suite: glue": TextRunConfig,
    "suite: news": TextRunConfig,
    "suite: commonsense": CausalRunConfig,
    "suite: continuation": ContinuationRunConfig,
    "suite: images": ImageRunConfig,
    "suite: new-task-texts": NewTaskRunConfig,
}


@pytest.mark.parametrize("text, kind", KINDS.items(), ids=KINDS)
def test_the_suite_says_the_kind(text, kind, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    assert type(load_run(tmp_path / "run.yaml")) is kind


def test_every_suite_of_a_configuration_is_registered():
    configs = (
        RunConfig,
        TextRunConfig,
        CausalRunConfig,
        ContinuationRunConfig,
        LearnerRunConfig,
        ImageRunConfig,
        NewTaskRunConfig,
    )
    named = {suite: config for config in configs for suite in typing.get_args(typing.get_type_hints(config)["suite"])}
    assert named == {name: entry.config for name, entry in SUITES.items()}
    of_papers = {"attributes", "cue", "shift", "natural", "news", "glue", "commonsense", "continuation", "images"}
    of_learners = {"learner-attributes", "learner-emoji", "learner-texts"}
    assert set(SUITES) == of_papers | of_learners | set(NEW_TASK_SUITES)


BAD = {
    "suite: comonsense": "run.yaml.suite: unknown choice 'comonsense'; did you mean 'commonsense'?",
    "suite: [glue]": "run.yaml.suite: unknown choice",
    "suite:": "run.yaml.suite: unknown choice None",
    "- suite": "run.yaml: expected a mapping",
    "suite: glue\nepisodes: {}": "run.yaml: unknown key 'episodes'",
    "suite: commonsense\nbatch: many": "run.yaml.batch: expected int, got 'many'",
}


@pytest.mark.parametrize("text, message", BAD.items(), ids=BAD)
def test_files_that_are_no_run(text, message, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        load_run(tmp_path / "run.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [{"classifier": "trained"}, {"classifier": "frozen", "full": True}])
def test_weights_without_an_adapter_are_in_no_file(changes):
    with pytest.raises(ValueError, match="trains weights without an adapter"):
        score(TextRunConfig(**changes), None)


def test_reading_a_run_imports_no_torch():
    code = "import sys, metalora_papers.registry; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_one_place_decides_where_networks_run():
    sources = Path(metalora_papers.__file__).parent.rglob("*.py")
    assert not [source.name for source in sources if "cuda.is_available" in source.read_text()]
