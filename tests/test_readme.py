"""Every Python block of the README, of CONTRIBUTING and of docs/ runs, and every command of the guide to own tasks."""

import re
import shutil
from pathlib import Path

import pytest

from support.doc_pages import run_commands, run_python
from support.own_tasks import write_messages, write_pictures

ROOT = Path(__file__).parents[1]
JOURNEYS = ("quickstart", "tutorials")  # folders of pages that run from top to bottom: tests/test_pages.py
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name not in JOURNEYS),
)
BLOCKS = [
    (f"{path.relative_to(ROOT)}-{k}", block)
    for path in PAGES
    for k, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S))
]
GUIDE = (ROOT / "docs" / "own-tasks.md").read_text()
COMMANDS = [
    commands
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.S)
    if (commands := [line for line in block.splitlines() if line.startswith("metalora ")])
]


@pytest.fixture(scope="module")
def files_of_a_user(tmp_path_factory):
    """A folder with the files that the guide to own tasks reads."""
    folder = tmp_path_factory.mktemp("user")
    write_pictures(folder, 90)
    write_messages(folder, 90)
    return folder


@pytest.fixture
def in_the_folder_of_a_user(files_of_a_user, tmp_path, monkeypatch):
    """The working directory of a test: a copy of the files of a user; reports have one peer."""
    from metalora.learner import report

    shutil.copytree(files_of_a_user, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PEERS", report.PEERS[:1])


def test_there_are_blocks():
    assert BLOCKS and len(COMMANDS) >= 2


@pytest.mark.parametrize("block", [block for _, block in BLOCKS], ids=[name for name, _ in BLOCKS])
def test_a_block_runs(block, in_the_folder_of_a_user):
    run_python(block)


@pytest.mark.slow
@pytest.mark.parametrize("commands", COMMANDS, ids=[commands[0].split(" --")[0] for commands in COMMANDS])
def test_commands_of_the_guide_run(commands, in_the_folder_of_a_user):
    run_commands("\n".join(commands))


def messages_of_the_guide():
    """The error messages in the first column of the last table of the guide."""
    rows = re.findall(r"^\| (`.*) \|.*\|$", GUIDE.split("## Trouble")[1], re.M)
    return [message for row in rows for message in re.findall(r"`(.+?)`", row)]


def test_the_messages_of_the_guide_are_those_of_the_code():
    sources = "\n".join(path.read_text() for path in (ROOT / "src" / "metalora").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # texts over two lines
    assert len(messages_of_the_guide()) > 10
    for message in messages_of_the_guide():
        fixed_parts = re.split(r"'[^']*'|\d+|\([^)]*\)|\ba Sequential\b", message)  # names and numbers vary
        for part in fixed_parts:
            assert part.strip(" .,;:") in sources, message
