"""Every example for clients in docs/serving.md and in the tutorial, as printed, against a real service."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metalora.learner import MetaLearner

GUIDE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
TUTORIAL = (Path(__file__).parents[2] / "docs" / "tutorials" / "serve-tasks.md").read_text()
MOST_SECONDS = 120


def section(title):
    """The section of the guide with a title."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", GUIDE, re.S | re.M)[1]


def blocks(text, language):
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The environment of a user of a service of texts that runs: its address and the key that it has printed."""
    folder = tmp_path_factory.mktemp("service")
    learner = MetaLearner("minilm").save_pretrained(folder / "learner")
    command = [sys.executable, "-m", "metalora.cli.main", "serve", str(learner), "--store", "tasks.db", "--port", "0"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
    address, key = re.search(r"(http://\S+?)/?#key=(\S+)", process.stdout.readline()).groups()
    try:
        wait_until_ready(address, process)
        yield os.environ | {
            "METALORA_URL": address,
            "STORE": str(folder / "tasks.db"),
            "METALORA_KEY": key,
            "OMP_NUM_THREADS": "1",
        }
    finally:
        process.terminate()
        process.wait(MOST_SECONDS)
        process.stdout.close()


def wait_until_ready(address, process):
    end = time.monotonic() + MOST_SECONDS
    ready = ["curl", "--silent", "--fail", f"{address}/readyz"]
    while subprocess.run(ready, capture_output=True).returncode:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


def printed(command, folder, environment):
    """What a command prints, which must succeed."""
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_curl(service, tmp_path):
    commands, outputs = blocks(section("With curl"), "sh"), blocks(section("With curl"), "text")
    assert len(commands) == 3 and len(outputs) == 1
    shown = printed(["bash", "-eu", "-c", "\n".join(commands)], tmp_path, service)
    assert shown.startswith(outputs[0])
    assert '"version":2' in shown and '"classes":["money","sport","weather"]' in shown and '"name":"topics"' in shown
    assert (tmp_path / "task.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("number", [0, 1], ids=["sync", "async"])
def test_the_programs(number, service, tmp_path):
    programs, outputs = blocks(section("With Python"), "py"), blocks(section("With Python"), "text")
    assert len(programs) == len(outputs) == 2
    assert printed([sys.executable, "-c", programs[number]], tmp_path, service) == outputs[number]


@pytest.mark.slow
def test_the_tutorial(service, tmp_path):
    """Two tenants: one uses curl, the other one the client; each sees its own tasks only."""
    outputs = blocks(TUTORIAL, "text")[1:]  # the first one is the link of the service, with another key
    (tmp_path / "shop.py").write_text(blocks(TUTORIAL, "py")[0])
    metalora, python = f'{sys.executable} -m metalora.cli.main "$@"', f"{sys.executable} shop.py"
    commands = "\n".join(blocks(TUTORIAL, "bash")).replace("export METALORA_URL=http://127.0.0.1:8000\n", "")
    commands = commands.replace("tasks.db", service["STORE"])
    script = f"metalora() {{ {metalora}; }}\n{commands}\necho\n{python}"
    assert printed(["bash", "-eu", "-c", script], tmp_path, service) == "".join(outputs)
