"""The table of docs/comparison.md: a test for each cell of this library, and names of the others that still exist."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
_, _, _, *ROWS = [re.split(r"(?<!\\) \| ", line.strip("| \n")) for line in re.findall(r"^\|.+$", PAGE, re.M)]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_cell_of_this_library_leads_to_a_test(row):
    assert len(row) == 6  # a name, and a cell for each library
    links = re.findall(r"\]\((\.\./tests/[^)]+)\)", row[1])
    assert links
    for link in links:
        path = (ROOT / "docs" / link).resolve()
        assert path.is_file() and "def test_" in path.read_text(encoding="utf-8"), link


def test_types_are_shipped_and_strict_for_a_part_of_the_modules():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert settings["mypy"]["check_untyped_defs"] and "src/metalora" in settings["mypy"]["files"]
    [strict] = [override["module"] for override in settings["mypy"]["overrides"] if override.get("strict")]
    assert {"metalora.config", "metalora.methods.*", "metalora.tensornet.*"} <= {*strict}
    assert "py.typed" in settings["setuptools"]["package-data"]["metalora"]
    assert (ROOT / "src" / "metalora" / "py.typed").is_file()


NAMED = {  # package and file -> what is in it
    ("peft", "peft_model.py"): ("print_trainable_parameters", "get_model_status", "save_pretrained"),
    ("timm", "models/_hub.py"): ("save_for_hf", "push_to_hf_hub"),
    ("timm", "models/_helpers.py"): ("resume_checkpoint",),
}


@pytest.mark.parametrize("place", NAMED, ids="/".join)
def test_what_the_page_names_of_others_exists(place):
    package, file = place
    try:
        source = Path(str(distribution(package).locate_file(f"{package}/{file}"))).read_text(encoding="utf-8")
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    for name in NAMED[place]:
        assert f"`{name}`" in PAGE and re.search(rf"def {name}\(", source)


@pytest.mark.parametrize("package", ("peft", "timm"))
def test_the_versions_are_those_that_were_read(package):
    pinned = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert pinned is not None and f" {pinned[1]}" in PAGE, "read the new version, and correct the page"
