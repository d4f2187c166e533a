"""`metalora serve` as processes, and clients that load it and compare every answer with that of the library."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import psutil

from metalora.learner import AdaptedTask
from support.serving import json_inputs, sentences, task_body, two_labels

REPLICA = "ray::ServeReplica"  # how Ray calls the processes of replicas
QUERIES = sentences(4, seed=3)
CLOSE = 1e-3  # between probabilities that the service and the library compute


class ServedProcesses:
    """`metalora serve` with flags, as a context; `calls` of it are requests with the key of its first tenant."""

    def __init__(self, learner, store, log, *flags):
        command = [sys.executable, "-m", "metalora.cli.main", "serve", str(learner), "--store", str(store), *flags]
        self._log = open(log, "w")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)

    def __enter__(self):
        start = time.monotonic()
        line = self._process.stdout.readline()
        assert "#key=" in line, f"the service did not start; see {self._log.name}"
        address, self.key = line.split()[1].split("#key=")
        self.host = urlsplit(address).netloc
        while not self.is_ready():
            time.sleep(0.1)
        self.start_seconds = time.monotonic() - start
        return self

    def __exit__(self, *error):
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(90)
        finally:
            self._process.kill()
            self._log.close()

    def is_ready(self):
        try:
            return self.call(http.client.HTTPConnection(self.host, timeout=5), "GET", "/readyz")[0] == 200
        except OSError:
            return False

    def call(self, connection, method, path, body=None):
        """The status and the JSON of an answer."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = answer.read()
        is_json = content and answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content

    def processes(self):
        """All processes of the service."""
        return [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]

    def replicas(self):
        """The numbers of the processes of Ray's replicas that are ready."""
        commands = {process.pid: _command(process) for process in self.processes()}
        return [pid for pid, name in commands.items() if name.startswith(REPLICA) and "initialize" not in name]

    def cpu_seconds(self):
        """What all processes have computed until now."""
        return sum(map(_cpu_seconds, self.processes()))


def _cpu_seconds(process):
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:  # it has just ended
        return 0.0


def _command(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def make_tasks(service, learner, count):
    """New tasks: id -> the probabilities of `QUERIES` by the library."""
    connection = http.client.HTTPConnection(service.host, timeout=60)
    expected = {}
    for number in range(count):
        inputs = sentences(12, seed=number)
        status, task = service.call(connection, "POST", "/v1/tasks", task_body(inputs))
        assert status == 201, task
        content = learner.adapt(inputs, two_labels(12)).to_bytes(max_bytes=20_000)
        expected[task["task"]] = AdaptedTask.from_bytes(content, learner).predict_proba(QUERIES).tolist()
    return expected


@dataclass
class Answers:
    """What clients have got: seconds of right answers, how many were wrong, and what failed."""

    seconds: list = field(default_factory=list)
    wrong: int = 0
    failures: list = field(default_factory=list)

    @property
    def count(self):
        return len(self.seconds) + self.wrong + len(self.failures)

    def percentile(self, share):
        """Milliseconds that this share of the right answers took at most."""
        return round(1000 * sorted(self.seconds)[int(share * (len(self.seconds) - 1))], 1)


def loaded(service, expected, clients, seconds, meanwhile=lambda: None):
    """The answers that clients get, each of which asks for one task after another, and what `meanwhile` returns."""
    answers, until = Answers(), time.monotonic() + seconds
    threads = [
        threading.Thread(target=_client, args=(service, expected, answers, number, until)) for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    outcome = meanwhile()
    for thread in threads:
        thread.join()
    return answers, outcome


def _client(service, expected, answers, number, until):
    tasks = sorted(expected)
    connection = http.client.HTTPConnection(service.host, timeout=60)
    while time.monotonic() < until:
        task = tasks[number % len(tasks)]
        number += 1
        start = time.monotonic()
        try:
            status, said = service.call(
                connection, "POST", f"/v1/tasks/{task}/predict", {"inputs": json_inputs(QUERIES)}
            )
        except (OSError, http.client.HTTPException) as error:
            answers.failures.append(type(error).__name__)
            connection.close()
            continue
        if status != 200:
            answers.failures.append(status)
        elif _same(said["probabilities"], expected[task]):
            answers.seconds.append(time.monotonic() - start)
        else:
            answers.wrong += 1


def _same(rows, others):
    return all(
        abs(a - b) < CLOSE for row, other in zip(rows, others, strict=True) for a, b in zip(row, other, strict=True)
    )


def kill(pid):
    """End a process as a crash does."""
    os.kill(pid, signal.SIGKILL)
