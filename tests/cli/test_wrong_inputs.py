"""Wrong inputs of every verb: one line that names the thing and what was expected, exit code 2, and nothing is left."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metalora.cli.main import VERBS
from metalora.cli.render import run_verbs
from support.command import check_wrong_input, metalora_command
from support.wrong_inputs import write_inputs

pytestmark = pytest.mark.filterwarnings("ignore:Only one sample available")
TABLE = Path(__file__).with_name("wrong_inputs.txt")  # a command line and what its error says, "|" between them
ABBREVIATIONS = {
    "BASE": "--model timm:resnet10t@{}/resnet.safetensors",
    "FIT": "fit {}/new --backbone efficientnet-lite0 --image-size 32 --data",
    "PICTURES": "--images {}/images",
}
ROWS = [line.partition("|")[::2] for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of all files, while a socket listens at a port."""
    for package in ("timm", "sklearn", "PIL", "transformers", "fastapi"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("wrong")
    with write_inputs(folder):
        yield folder


def arguments_of(line, folder):
    """The arguments of a line of the table."""
    words = [ABBREVIATIONS.get(word, word) for word in line.split()]
    port = (folder / "port").read_text()
    return [word.replace("{port}", port).replace("{}", str(folder)) for word in " ".join(words).split()]


@pytest.mark.parametrize("line, fragment", ROWS, ids=[line.strip() or "nothing" for line, _ in ROWS])
def test_a_wrong_input_is_one_line(line, fragment, folder):
    check_wrong_input(metalora_command, "metalora", arguments_of(line, folder), fragment.strip(), folder)


def test_the_table_has_every_verb():
    assert set(VERBS) <= {arguments_of_verb(line) for line, _ in ROWS} and len(ROWS) >= 200


def arguments_of_verb(line):
    return (ABBREVIATIONS.get(line.split()[0], line) if line.split() else "nothing").split()[0]


def test_a_file_that_may_not_be_read(folder, monkeypatch):
    path = folder / "adapter.safetensors"
    real = os.stat

    def stat(file, *arguments, **options):
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr("metalora._util.reading.os.stat", stat)
    code, _, err = metalora_command("inspect", "--file", path)
    assert code == 2 and err.count("\n") == 1 and f"{path}: cannot be read (Permission denied)" in err


def failing(error):
    def verb() -> None:
        raise error

    return {"verb": verb, "other": verb}


def test_a_fault_of_the_program_is_one_line_too_and_tells_how_to_see_more(capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        run_verbs(failing(RuntimeError("first line\nsecond line")), "metalora", ["verb"], "about")
    said = "metalora: unexpected RuntimeError: first line second line (METALORA_TRACEBACK=1 shows where)\n"
    assert stop.value.code == 1 and capsys.readouterr().err == said
    monkeypatch.setenv("METALORA_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="second line"):
        run_verbs(failing(RuntimeError("first line\nsecond line")), "metalora", ["verb"], "about")


PROCESSES = {
    "mrge": "metalora: unknown command 'mrge'; did you mean 'merge'?",
    "methods --jsn": "metalora: unknown flag --jsn; did you mean --json?",
    "plan --model gpt2 --rank 0": "metalora: AdapterConfig.rank is 0, expected at least 1",
}


@pytest.mark.parametrize("arguments, line", PROCESSES.items(), ids=PROCESSES)
def test_a_wrong_input_in_a_process_of_its_own(arguments, line):
    command = [sys.executable, "-m", "metalora.cli.main", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and done.stderr.startswith(line)
