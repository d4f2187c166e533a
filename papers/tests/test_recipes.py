"""Every recipe loads, and says what its first line says it is."""

from pathlib import Path

import pytest

from metalora.config import from_dict, read_yaml, to_dict
from metalora_papers.config import RunConfig, TableConfig, TextTableConfig
from metalora_papers.learner.config import LearnerTableConfig

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*/*.yaml"))
KINDS = {f"# {kind.__name__}": kind for kind in (RunConfig, TableConfig, TextTableConfig, LearnerTableConfig)}


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_loads(path):
    kind = path.read_text().splitlines()[0]
    assert kind in KINDS, f"{path}: the first line must be one of {', '.join(KINDS)}"
    assert from_dict(KINDS[kind], read_yaml(path)) != KINDS[kind](), "a recipe that is the default says nothing"


def test_the_recipes_are_there():
    assert {path.stem for path in RECIPES} >= {"attributes-resnet", "attributes-fashion"}


def test_the_recipe_of_one_run_is_that_row_of_the_table():
    """One seed of metalora-cp in `metalora table metalora`: the same key, so a table finds its row and skips it."""
    pytest.importorskip("timm")
    from metalora_papers.metalora.table import ImageComparison
    from metalora_papers.scheduler import key_of

    [path] = [path for path in RECIPES if path.stem == "attributes-resnet"]
    recipe = from_dict(RunConfig, read_yaml(path))
    (run,) = ImageComparison("metalora", TableConfig(methods=("metalora-cp",), seeds=(0,))).runs({})
    assert to_dict(recipe) == to_dict(run) and key_of(recipe) == key_of(run)
