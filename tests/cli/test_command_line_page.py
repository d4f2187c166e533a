"""The page of the command line: its commands print what it says, and its table has every verb."""

import re
import shlex
from pathlib import Path

import pytest

from metalora.cli.main import VERBS
from support.command import metalora_command

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_commands_print_what_the_page_says(block, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    for command in block.removeprefix("$ ").split("\n$ "):
        line, _, expected = command.partition("\n")
        _, out, err = metalora_command(*shlex.split(line)[1:])
        assert re.sub(r" \(known: .*", "", out + err).strip() == expected.strip()


def test_the_table_has_every_verb():
    assert set(re.findall(r"^\| `(\w+)", PAGE, re.M)) == set(VERBS)
