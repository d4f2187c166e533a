"""The processes of the service: a socket, a server that stops without losing requests, several replicas."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from types import FrameType

import torch
import uvicorn
from fastapi import FastAPI

from metalora.learner.learner import MetaLearner
from metalora.serving.app import make_app
from metalora.serving.config import ServingConfig
from metalora.serving.logs import log_to_stderr
from metalora.serving.store import open_store

BACKLOG = 2048  # connections that wait to be accepted
SHORTEST_LIFE = 10.0  # seconds; a replica that ends sooner by itself would do so again
LAST_SECOND = 1  # for uvicorn to close connections, after the time to stop is over
KERNEL_CACHE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
KERNELS = 128  # compiled convolutions that are kept, one for each layer and batch size; oneDNN would keep 1024 of them
IDLE_SECONDS = 75  # that a connection stays open: longer than the idle time of load balancers (60 s), which close first


@dataclass(frozen=True)
class Launch:
    """What a process of the service starts with.

    Attributes:
        learners: Folders of the learners, the current one first.
        store: Path or URL of the store.
        config: The settings of the service.
        certificate: File of the TLS certificate, or None.
        certificate_key: File of its key, or None.
    """

    learners: tuple[str, ...]
    store: str
    config: ServingConfig = field(default_factory=ServingConfig)
    certificate: str | None = None
    certificate_key: str | None = None


class DrainingServer(uvicorn.Server):
    """A server that answers what it has accepted, before it stops.

    After SIGTERM or Ctrl-C new requests get 503, and the server ends as soon as no request is left, or after `stop_s`.
    A second Ctrl-C ends it at once.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI):
        super().__init__(config)
        self._service = app.state.service
        self._latest = 0.0  # when it ends, even if requests are left

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop."""
        if self._service.stopping:
            self.force_exit = self.should_exit = self.force_exit or sig == signal.SIGINT or self.should_exit
            return
        self._service.stopping = True
        self._latest = time.monotonic() + self._service.config.stop_s

    async def on_tick(self, counter: int) -> bool:
        """Say ten times a second whether the server ends."""
        if self._service.stopping and (not self._service.active or time.monotonic() > self._latest):
            self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: Name or address of an interface of this machine.
        port: The port; 0: any that is free.

    Raises:
        ValueError: The port is taken, or the host is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot listen at {host}:{port} ({reason}): choose another --port or --host") from None


def app_of(launch: Launch) -> FastAPI:
    """Load the learners, open the store, and return the app of a process.

    Args:
        launch: What is served.

    Raises:
        ValueError: A learner or the store cannot be opened.
    """
    if launch.config.threads is not None:
        torch.set_num_threads(launch.config.threads)
    os.environ.setdefault(KERNEL_CACHE, str(KERNELS))  # read at the first convolution
    log_to_stderr()
    learners = [MetaLearner.from_pretrained(folder) for folder in launch.learners]
    return make_app(learners, open_store(launch.store), launch.config)


def serve(launch: Launch, listening: socket.socket) -> None:
    """Load the learners, and serve until a signal ends the process.

    Args:
        launch: What is served.
        listening: The socket.
    """
    app = app_of(launch)
    settings = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=launch.certificate,
        ssl_keyfile=launch.certificate_key,
        timeout_graceful_shutdown=LAST_SECOND,
        timeout_keep_alive=IDLE_SECONDS,
    )
    DrainingServer(settings, app).run([listening])


def serve_replicas(launch: Launch, listening: socket.socket, count: int) -> None:
    """Serve in several processes on one socket; one that ends by itself is started again.

    Args:
        launch: What is served.
        listening: The socket.
        count: Number of processes.

    Raises:
        ValueError: A replica ended right after its start.
    """
    Replicas(launch, listening, count).run()


def serve_as_replica(launch: Launch, listening: socket.socket) -> None:
    """Serve as one of several processes, and stop when the process that started them is gone.

    Args:
        launch: What is served.
        listening: The socket.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    serve(launch, listening)


class Replicas:
    """Processes that serve on one socket, and are started again if they end by themselves.

    Args:
        launch: What is served.
        listening: The socket.
        count: Number of processes.
    """

    def __init__(self, launch: Launch, listening: socket.socket, count: int):
        self._context = multiprocessing.get_context("spawn")
        self._arguments = launch, listening
        self._stop_s = launch.config.stop_s
        self._stopping = False
        self._processes = [self._started() for _ in range(count)]

    def run(self) -> None:
        """Watch the processes until a signal ends them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            while not self._stopping:
                time.sleep(0.2)
                self._processes = [self._alive(process, started) for process, started in self._processes]
        finally:
            self._end()

    def _started(self) -> tuple[BaseProcess, float]:
        process = self._context.Process(target=serve_as_replica, args=self._arguments)
        process.start()
        return process, time.monotonic()

    def _alive(self, process: BaseProcess, started: float) -> tuple[BaseProcess, float]:
        """Return a process and its start, or those of another one in its place if it has ended."""
        if process.is_alive() or self._stopping:
            return process, started
        was_killed = process.exitcode is not None and process.exitcode < 0
        if not was_killed and time.monotonic() - started < SHORTEST_LIFE:
            raise ValueError(f"a replica ended right after its start (exit code {process.exitcode}); its log says why")
        return self._started()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _end(self) -> None:
        """Let all processes finish their requests, but not for ever."""
        processes = [process for process, _ in self._processes]
        for process in processes:
            process.terminate()
        latest = time.monotonic() + self._stop_s + 2 * LAST_SECOND
        for process in processes:
            process.join(max(0.0, latest - time.monotonic()))
            process.kill()


def with_threads(config: ServingConfig, replicas: int) -> ServingConfig:
    """Return the settings of a replica: if no number of threads is given, the cores are shared out.

    Args:
        config: The settings of the service.
        replicas: Number of processes.
    """
    if config.threads is not None or replicas == 1:
        return config
    return dataclasses.replace(config, threads=max(1, (os.cpu_count() or 1) // replicas))


def link(port: int, host: str, key: str | None, *, is_secure: bool) -> str:
    """Return the address of the service, with a key if there is one.

    Args:
        port: The port.
        host: The host that it listens at; for all interfaces, the address names this machine.
        key: The key of a tenant, which the page takes out of the address.
        is_secure: Whether it uses TLS.

    Example:
        >>> link(8000, "0.0.0.0", "ml_key", is_secure=False)
        'http://127.0.0.1:8000/#key=ml_key'
    """
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    address = f"{'https' if is_secure else 'http'}://{name}:{port}/"
    return address if key is None else f"{address}#key={key}"


def learner_folders(first: str, others: Sequence[str]) -> tuple[str, ...]:
    """Return the folders of learners; ValueError by name if one is none, before anything is loaded.

    Args:
        first: Folder of the current learner.
        others: Folders of older ones.
    """
    from metalora.learner.saving import read_learner

    for folder in (first, *others):
        description = read_learner(folder)
        if description["preprocessor"]["kind"] == "arrays":
            raise ValueError(f"{folder}: this learner takes arrays; a service takes pictures or texts")
    return (first, *others)
