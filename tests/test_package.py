"""The two distributions: what is in them, what PyPI says of them, and the recipes that build and install them."""

import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import metalora

ROOT = Path(__file__).parents[1]
ADDRESS = runpy.run_path(str(ROOT / "tools" / "release_address.py"))
REPOSITORY = "https://github.com/owner/repository"
PROJECTS = {
    folder: tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in ("", "papers")
}
SOURCES = (
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
    "SECURITY.md",
    "src",
)
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info")


def test_both_have_the_version_that_the_library_says():
    assert {project["version"] for project in PROJECTS.values()} == {metalora.__version__}


@pytest.mark.parametrize("project", PROJECTS.values(), ids=["metalora", "metalora-papers"])
def test_pypi_is_told_what_it_is(project):
    assert project["urls"]["Homepage"] == f"https://pypi.org/project/{project['name']}/"
    assert len(project["keywords"]) >= 5 and project["description"] and project["license"] == "MIT"
    pythons = [line.rpartition(":: ")[2] for line in project["classifiers"] if ":: 3." in line]
    assert pythons == ["3.11", "3.12", "3.13"] and project["requires-python"] == ">=3.11"


README = """[page](docs/a.md) [part](docs/a.md#b) [here](#part) [there](https://x.org/y)
<source srcset="docs/dark.svg"><img src="docs/light.svg">"""
READ_ON_PYPI = f"""[page]({REPOSITORY}/blob/v1/docs/a.md) [part]({REPOSITORY}/blob/v1/docs/a.md#b) [here](#part) \
[there](https://x.org/y)
<source srcset="https://raw.githubusercontent.com/owner/repository/v1/docs/dark.svg">\
<img src="https://raw.githubusercontent.com/owner/repository/v1/docs/light.svg">"""


def test_links_and_pictures_of_a_readme_get_the_whole_address():
    assert ADDRESS["with_addresses"](README, REPOSITORY, "v1") == READ_ON_PYPI
    up = ADDRESS["with_addresses"]("[metalora](../README.md)", REPOSITORY, "v1", "papers")
    assert up == f"[metalora]({REPOSITORY}/blob/v1/README.md)"


@pytest.mark.parametrize("folder", PROJECTS)
def test_a_release_has_the_addresses_of_its_repository(folder):
    text = (ROOT / folder / "pyproject.toml").read_text()
    urls = tomllib.loads(ADDRESS["with_urls"](text, REPOSITORY, "v1"))["project"]["urls"]
    assert urls == PROJECTS[folder]["urls"] | {
        "Source": REPOSITORY,
        "Documentation": f"{REPOSITORY}/tree/v1/docs",
        "Changelog": f"{REPOSITORY}/blob/v1/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    }
    readme = ADDRESS["with_addresses"]((ROOT / folder / "README.md").read_text(), REPOSITORY, "v1", folder)
    links = re.findall(r"\]\(([^)]+)\)|(?:src|srcset)=\"([^\"]+)\"", readme)
    assert links and all(link.startswith(("https://", "#")) for pair in links for link in pair if link)


def test_the_workflow_of_a_release_builds_checks_tries_and_publishes_without_a_secret():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    commands = "\n".join(step.get("run", "") for step in jobs["build"]["steps"])
    for part in (
        "-m build --outdir dist .",
        "-m build --outdir dist papers",
        "twine check --strict",
        "metalora --help",
    ):
        assert part in commands
    assert all((ROOT / script).exists() for script in re.findall(r"tools/\w+\.py", commands))
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and jobs["publish"]["needs"] == "build"
    assert "secrets." not in text and "password" not in text


def test_the_recipe_for_conda_has_the_version_and_the_dependencies_of_the_package():
    text = (ROOT / "deploy" / "conda" / "meta.yaml").read_text()
    project = PROJECTS[""]
    assert f'{{% set version = "{project["version"]}" %}}' in text and project["description"] in text
    values = yaml.safe_load(re.sub(r"^{%.*%}$", "", text, flags=re.M).replace("{{", "").replace("}}", ""))
    run = [requirement.replace(" ", "") for requirement in values["requirements"]["run"]]
    expected = [f"python{project['requires-python']}", *project["dependencies"]]
    assert run == [requirement.replace("torch>", "pytorch>") for requirement in expected]
    assert values["build"]["entry_points"] == [f"metalora = {project['scripts']['metalora']}"]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A folder with the archives and the wheels of both distributions, built from a copy of the checkout."""
    pytest.importorskip("build", reason="python -m build is not installed")
    checkout = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, checkout / name, **({"ignore": NOT_COPIED} if source.is_dir() else {}))
    shutil.copytree(ROOT / "papers", checkout / "papers", ignore=NOT_COPIED)
    for folder in (checkout, checkout / "papers"):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(checkout / "dist"), str(folder)]
        subprocess.run(command, check=True, capture_output=True)
    return checkout / "dist"


@pytest.mark.slow
def test_the_archive_and_the_wheel_have_what_they_need_and_no_more(distributions):
    (archive,) = distributions.glob("metalora-*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    top = {name.partition("/")[0] for name in names if name}
    assert top == {*SOURCES, "PKG-INFO", "setup.cfg"}
    (wheel,) = distributions.glob("metalora-*.whl")
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if name.startswith("metalora/")}
    package = ROOT / "src" / "metalora"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert packed == {str(path.relative_to(package.parent)) for path in files}


@pytest.mark.slow
def test_pypi_takes_both(distributions):
    pytest.importorskip("twine", reason="twine is not installed")
    files = sorted(map(str, distributions.iterdir()))
    command = [sys.executable, "-m", "twine", "check", "--strict", *files]
    done = subprocess.run(command, capture_output=True, text=True, env={"NO_COLOR": "1", "PATH": ""})
    assert done.returncode == 0 and done.stdout.count("PASSED") == len(files) == 4, done.stdout + done.stderr
