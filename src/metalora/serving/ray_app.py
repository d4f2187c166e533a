"""The service on Ray Serve: replicas of the very same app, on one machine or on many.

Replicas only cache; the store owns. So any replica answers any request, and none needs to be found again.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metalora.config import Configuration, from_dict
from metalora.serving.config import ServingConfig
from metalora.serving.ray_metrics import export_to_ray
from metalora.serving.server import Launch, app_of

NAME = "metalora"
LAST_SECONDS = 5.0  # for a replica to close its store, after the time to finish requests is over


@dataclass(frozen=True)
class RayArguments(Configuration):
    """What a configuration file of Ray Serve says below `args`.

    Attributes:
        learner: Folder of the current learner, as every replica sees it.
        store: URL of the store; the password comes from PGPASSWORD or PGPASSFILE.
        also: Folders of older learners, whose tasks are still served.
        config: The settings of the service.
    """

    learner: str
    store: str
    also: tuple[str, ...] = ()
    config: ServingConfig = ServingConfig()


class WithoutRequestId:
    """Leaves the header X-Request-Id to the proxy of Ray, which gives its id to the app and adds it to every answer.

    Args:
        app: The app.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""

        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await self.app(scope, receive, send_without_id)


class Replica:
    """A replica; `serve.ingress` makes it answer with the app of a launch."""

    app: FastAPI  # of the class that `serve.ingress` makes of this one

    async def check_health(self) -> None:
        """Raise an error if no more predictions can come; Ray Serve then puts another replica in the place of this one.

        A store that does not answer is none: another replica would have the same store. `/readyz` tells it.
        """
        if not self.app.state.service.is_alive:
            raise RuntimeError("a thread of the network has ended")


def application(arguments: Mapping[str, Any]) -> serve.Application:
    """Return what Ray Serve runs; a configuration file names it as its `import_path`.

    Args:
        arguments: As `RayArguments` has them.

    Raises:
        ValueError: An unknown or missing argument, or a store that the machines of the cluster do not share.
    """
    read = from_dict(RayArguments, arguments, "args")
    return bound_application(Launch((read.learner, *read.also), read.store, read.config))


def bound_application(launch: Launch, replicas: int | None = None) -> serve.Application:
    """Return the application of a launch.

    Args:
        launch: What every replica serves. Each builds its learners, its store and its app itself.
        replicas: Number of replicas; None: a configuration file says it.

    Raises:
        ValueError: A store that the machines of the cluster do not share.
    """
    config = launch.config
    threads = config.threads or 1
    launch = dataclasses.replace(launch, config=dataclasses.replace(config, threads=threads))
    ingress = serve.ingress(lambda: _app_of_replica(launch))(Replica)
    deployment: serve.Deployment = serve.deployment(
        ingress,
        name=NAME,
        num_replicas=replicas or 1,
        ray_actor_options={"num_cpus": threads, "resources": _place_of(launch.store)},
        max_ongoing_requests=config.max_queue_rows,  # a request has a row or more: the app says when it is busy
        graceful_shutdown_timeout_s=config.stop_s + LAST_SECONDS,
    )
    return deployment.bind()


def _app_of_replica(launch: Launch) -> FastAPI:
    app = app_of(launch)
    export_to_ray(app.state.service.metrics.registry)
    app.add_middleware(WithoutRequestId)
    return app


def _place_of(store: str) -> dict[str, float]:
    """Return the resources that bind replicas to this machine: a file is the store of one machine only."""
    if "://" in store or not ray.is_initialized():
        return {}
    machines = sum(node["Alive"] for node in ray.nodes())
    if machines > 1:
        raise ValueError(
            f"{store}: a file is the store of one machine, and this cluster has {machines}: use postgresql://..."
        )
    return {f"node:{ray.util.get_node_ip_address()}": 0.001}


# ---- the verb `serve` with --ray -----------------------------------------------------------------------------------
def serve_on_ray(launch: Launch, host: str, port: int, replicas: int) -> None:
    """Serve on the Ray cluster that RAY_ADDRESS names, or on a cluster of this machine alone, until a signal ends it.

    Args:
        launch: What is served.
        host: Interface that the machines listen at.
        port: Port that they listen at.
        replicas: Number of replicas.

    Raises:
        ValueError: A store that the machines of the cluster do not share.
    """
    stop = threading.Event()
    _connect()
    try:
        serve.start(proxy_location="EveryNode", http_options=_http_options(launch, host, port))
        _run(bound_application(absolute(launch), replicas))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        serve.delete(NAME)  # replicas finish what they have accepted
    finally:
        ray.shutdown()


def _connect() -> None:
    """Connect to a cluster; one of this machine alone gets no dashboard, through which others could run code."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False)
    else:
        ray.init(log_to_driver=False, include_dashboard=False)


def _http_options(launch: Launch, host: str, port: int) -> dict[str, Any]:
    tls = {"ssl_certfile": launch.certificate, "ssl_keyfile": launch.certificate_key}
    return {"host": host, "port": port} | (tls if launch.certificate is not None else {})


def _run(application: serve.Application) -> DeploymentHandle:
    try:
        return serve.run(application, name=NAME, route_prefix="/")
    except RuntimeError as error:
        raise ValueError(f"the service did not start on Ray: {error}") from None


def absolute(launch: Launch) -> Launch:
    """Return a launch whose paths are absolute, since replicas run in other folders.

    Args:
        launch: The launch.
    """
    learners = tuple(str(Path(folder).absolute()) for folder in launch.learners)
    store = launch.store if "://" in launch.store else str(Path(launch.store).absolute())
    return dataclasses.replace(launch, learners=learners, store=store)
