"""`metalora serve` as a process: the first key, signals, replicas, errors in one line."""

import contextlib
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

from metalora._util.extras import missing_package_message
from metalora.learner import MetaLearner
from metalora.serving.server import KERNEL_CACHE, KERNELS, Launch, app_of
from support.command import metalora_command
from support.fresh_process import FreshCommand
from support.serving import json_inputs, sentences, task_body

MOST_SECONDS = 60


@contextlib.contextmanager
def served(folder, store, *flags):
    """A process of `metalora serve` that is ready, its address and what else its link has."""
    arguments = ("serve", folder, "--store", store, "--port", "0", "--threads", "1", *flags)
    process = FreshCommand("metalora.cli.main", *arguments)
    try:
        address, key = re.search(r"(http\S+?)(?:#key=(\S+))?$", process.out.readline().strip()).groups()
        wait_until(lambda: httpx.get(f"{address}readyz").status_code == 200)
        yield process, address, key
    finally:
        process.close()


def wait_until(condition):
    """Wait until something is true; an error of the connection counts as false."""
    end = time.monotonic() + MOST_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if condition():
                return
        time.sleep(0.05)
    raise AssertionError("it did not become true")


def test_the_service_stops_without_losing_a_request_and_keeps_its_tasks(text_folder, tmp_path):
    store = tmp_path / "tasks.db"
    with served(text_folder, store, "--max-wait-ms", "700") as (process, address, key):
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        task = client.post("/v1/tasks", json=task_body(sentences(8))).json()["task"]
        path, body, answers = f"/v1/tasks/{task}/predict", {"inputs": json_inputs(sentences(2))}, []
        asked = threading.Thread(target=lambda: answers.append(client.post(path, json=body)))
        asked.start()
        other = httpx.Client(base_url=address, headers=client.headers)  # its connection is accepted before the stop
        assert other.get("/v1/tasks").status_code == 200
        time.sleep(0.3)  # the batch waits 0.7 s for further rows
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        refused = [other.get(path).status_code for path in ("/readyz", "/v1/tasks", "/healthz")]
        asked.join()
        assert answers[0].status_code == 200 and refused == [503, 503, 200]
        assert process.wait(MOST_SECONDS) == 0
        assert key not in process.err.read()
    with served(text_folder, store) as (process, address, new_key):
        assert new_key is None  # the link with the key is printed once
        again = httpx.post(f"{address}{path[1:]}", json=body, headers=client.headers)
        assert again.json() == answers[0].json()
        process.send_signal(signal.SIGINT)
        assert process.wait(MOST_SECONDS) == 0


@pytest.mark.slow  # it starts five processes that import torch
def test_replicas_share_a_store_and_one_that_dies_is_replaced(text_folder, tmp_path):
    with served(text_folder, tmp_path / "tasks.db", "--replicas", "2") as (process, address, key):
        headers = {"Authorization": f"Bearer {key}"}
        task = httpx.post(f"{address}v1/tasks", json=task_body(sentences(8)), headers=headers).json()["task"]
        before = children(process.pid)
        killed = before.pop()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len(children(process.pid) - {killed}) == 2)
        assert children(process.pid) > before
        assert httpx.get(f"{address}v1/tasks/{task}", headers=headers, timeout=MOST_SECONDS).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(MOST_SECONDS) == 0
        assert not children(process.pid)


def children(pid):
    """The replicas of a process, without the helper of multiprocessing that cleans up."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    pids = map(int, children.read_text().split()) if children.exists() else ()
    return {child for child in pids if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()}


def test_mistakes_are_one_line(text_folder, tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    arrays = MetaLearner(network, adapter=None).save_pretrained(tmp_path / "arrays")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mistakes = {
            (text_folder, "--port", port): "cannot listen at 127.0.0.1",
            (tmp_path / "nothing",): "not the folder of a learner",
            (arrays,): "takes arrays",
            (text_folder, "--also", arrays): "takes arrays",
            (text_folder, "--tls-cert", "x"): "--tls-cert and --tls-key belong together",
            (text_folder, "--tls-cert", "x", "--tls-key", "y"): "there is no such file",
            (text_folder, "--max-rows", "0"): "max_rows is 0, expected at least 1",
            (text_folder, "--dtype", "float8"): "float8",
        }
        for arguments, message in mistakes.items():
            code, out, err = metalora_command("serve", *arguments, "--store", tmp_path / "tasks.db")
            assert code == 2 and out == "" and message in err, (arguments, err)


def test_a_missing_extra_is_named():
    error = ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
    assert missing_package_message(error) == 'uvicorn is not installed: pip install "metalora[serve]"'


@pytest.mark.parametrize("host", ("127.0.0.1", "::1"))
def test_links(host):
    from metalora.serving.server import link, listen

    with listen(host, 0) as listening:
        port = listening.getsockname()[1]
        name = "[::1]" if ":" in host else host
        assert link(port, host, "k", is_secure=True) == f"https://{name}:{port}/#key=k"
        assert link(port, "0.0.0.0", None, is_secure=False) == f"http://127.0.0.1:{port}/"


@pytest.mark.parametrize("chosen", [None, "7"])
def test_the_memory_of_compiled_convolutions_is_bounded_unless_the_user_says_so(
    chosen, text_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv(KERNEL_CACHE, chosen or "")
    if chosen is None:
        monkeypatch.delenv(KERNEL_CACHE)
    app_of(Launch((str(text_folder),), str(tmp_path / "tasks.db"))).state.service.close()
    assert os.environ[KERNEL_CACHE] == (chosen or str(KERNELS))
