"""Every recipe loads, says what its first line says it is, and its commands exist."""

import re
from pathlib import Path

import pytest

from metalora.config import from_dict, read_yaml, to_dict
from metalora_papers.cli import TABLES
from metalora_papers.config import GridConfig, RunConfig, TableConfig, TextTableConfig
from metalora_papers.learner.config import LearnerTableConfig
from metalora_papers.tenslora.config import ImageRunConfig, ImageTableConfig

REPOSITORY = Path(__file__).parents[2]
RECIPES = sorted((REPOSITORY / "papers" / "recipes").glob("*/*.yaml"))
CLASSES = (RunConfig, TableConfig, TextTableConfig, LearnerTableConfig, GridConfig, ImageRunConfig, ImageTableConfig)
KINDS = {f"# {kind.__name__}": kind for kind in CLASSES}


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_loads(path):
    kind = path.read_text().splitlines()[0]
    assert kind in KINDS, f"{path}: the first line must be one of {', '.join(KINDS)}"
    assert from_dict(KINDS[kind], read_yaml(path)) != KINDS[kind](), "a recipe that is the default says nothing"


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_the_commands_of_a_recipe_name_verbs_tables_and_files_that_exist(path):
    comments = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    commands = re.findall(r"(metalora\S*) (table|train|grid) (\S+)", comments)
    assert commands and {command for command, _, _ in commands} == {"metalora-papers"}
    assert {name for _, verb, name in commands if verb == "table"} <= set(TABLES)
    files = set(re.findall(r"\S+\.yaml", comments)) - {"run.yaml"}  # that file is the user's
    assert files and all((REPOSITORY / file).exists() for file in files)


def test_the_recipes_are_there():
    assert {path.stem for path in RECIPES} >= {"attributes-resnet", "attributes-fashion"}


def test_the_recipe_of_one_run_is_that_row_of_the_table():
    """One seed of metalora-cp in `metalora-papers table metalora`: the same key, so a table finds its row."""
    pytest.importorskip("timm")
    from metalora_papers.jobs import key_of
    from metalora_papers.metalora.table import ImageComparison

    [path] = [path for path in RECIPES if path.stem == "attributes-resnet"]
    recipe = from_dict(RunConfig, read_yaml(path))
    (run,) = ImageComparison("metalora", TableConfig(methods=("metalora-cp",), seeds=(0,))).runs({})
    assert to_dict(recipe) == to_dict(run) and key_of(recipe) == key_of(run)
