"""The verbs of the service; heavy imports are inside the verb."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from metalora._util.number_range import Range
from metalora.cli.render import Json, print_json, show
from metalora.serving.config import ServingConfig

if TYPE_CHECKING:
    from metalora.serving.store import Store

STORES = "the store of the service: a path (SQLite), or postgresql://user:password@host/database"
StoreUrl = Annotated[str, tyro.conf.arg(metavar="FILE_OR_URL", help=STORES)]
FIRST_TENANT = "default"


def serve(
    learner: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LEARNER", help="folder of the learner")],
    store: StoreUrl,
    also: Annotated[
        tuple[Path, ...], tyro.conf.arg(help="folders of older learners, whose tasks are still served")
    ] = (),
    host: Annotated[str, tyro.conf.arg(help="interface to listen at; 0.0.0.0: all")] = "127.0.0.1",
    port: Annotated[
        int, tyro.conf.arg(help="port to listen at; 0: any that is free"), Range(least=0, most=65535)
    ] = 8000,
    replicas: Annotated[int, tyro.conf.arg(help="processes that share the store"), Range(least=1)] = 1,
    ray: Annotated[
        bool, tyro.conf.arg(help="replicas by Ray Serve, on the cluster of RAY_ADDRESS or on this machine")
    ] = False,
    tls_cert: Annotated[Path | None, tyro.conf.arg(help="file of the TLS certificate")] = None,
    tls_key: Annotated[Path | None, tyro.conf.arg(help="file of the key of the TLS certificate")] = None,
    config: Annotated[ServingConfig, tyro.conf.AvoidSubcommands, tyro.conf.arg(name="")] = ServingConfig(),  # noqa: B008
) -> None:
    """Serve a learner over HTTP: tenants make tasks of labelled pictures or texts, and predict with them.

    An empty store gets a tenant, and the link with its key is printed once.
    """
    from metalora.serving import server
    from metalora.serving.store import open_store

    _check_tls(tls_cert, tls_key)
    if ray:
        _check_ray(port)
    folders = server.learner_folders(str(learner), [str(folder) for folder in also])
    listening = server.listen(host, port)  # before the store, which is made if there is none
    opened = open_store(store, create=True)
    key = _first_key(opened)
    opened.close()
    address = server.link(listening.getsockname()[1], host, key, is_secure=tls_cert is not None)
    print(f"open {address}" if key else f"serving at {address}", flush=True)
    files = None if tls_cert is None else str(tls_cert), None if tls_key is None else str(tls_key)
    launch = server.Launch(folders, store, server.with_threads(config, replicas), *files)
    if ray:
        from metalora.serving.ray_app import serve_on_ray

        listening.close()
        serve_on_ray(launch, host, port, replicas)
    elif replicas == 1:
        server.serve(launch, listening)
    else:
        server.serve_replicas(launch, listening, replicas)


def _check_ray(port: int) -> None:
    """Raise an error before anything is written: Ray is not installed, or the machines would listen at no one port."""
    import metalora.serving.ray_app  # noqa: F401 (its packages are an extra)

    if port == 0:
        raise ValueError("--port 0 does not go with --ray, whose machines all listen at one port: choose a --port")


def _check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise a ValueError unless there are both files, or none."""
    if (certificate is None) != (key is None):
        raise ValueError("--tls-cert and --tls-key belong together: give both, or none")
    for flag, file in (("--tls-cert", certificate), ("--tls-key", key)):
        if file is not None and not file.is_file():
            raise ValueError(f"{flag} {file}: there is no such file")
    if certificate is not None:
        _check_pair(certificate, key)


def _check_pair(certificate: Path, key: Path | None) -> None:
    """Raise a ValueError unless the files are a certificate and its key."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"--tls-cert {certificate}, --tls-key {key}: not a certificate and its key in PEM "
            f"({error.strerror or error})"
        ) from None


def _first_key(opened: Store) -> str | None:
    """Add a tenant to a store that has none, and return its key."""
    from metalora.serving.keys import key_digest, new_key

    if opened.tenants():
        return None
    key = new_key()
    opened.add_tenant(FIRST_TENANT, key_digest(key))
    return key


def tenants(
    action: Annotated[
        Literal["add", "list", "revoke"],
        tyro.conf.Positional,
        tyro.conf.arg(help="add a tenant and print its key once, list all tenants, or make the key of one invalid"),
    ],
    store: StoreUrl,
    name: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help="the tenant, for add and revoke")
    ] = None,
    json: Json = False,
) -> None:
    """Add, list or revoke the tenants of the service: each has a key and sees its own tasks only."""
    from metalora.serving.store import open_store

    if (name is None) != (action == "list"):
        raise ValueError("tenants list takes no name" if name is not None else f"tenants {action} needs a NAME")
    opened = open_store(store, create=action == "add")
    try:
        if name is None:
            rows = [{"name": one.name, "created": one.created, "revoked": one.revoked} for one in opened.tenants()]
            show(rows, json, "tenants", ("name", "created", "revoked"), rows)
        elif action == "add":
            _add(opened, name, json)
        else:
            opened.revoke(name)
            row = {"name": name, "revoked": True}
            show(row, json, "tenant", ("name", "revoked"), [row])
    finally:
        opened.close()


def _add(opened: Store, name: str, json: bool) -> None:
    """Add a tenant and print its key: alone on standard output, so that a script can take it."""
    from metalora.serving.keys import key_digest, new_key

    key = new_key()
    opened.add_tenant(name, key_digest(key))
    if json:
        return print_json({"name": name, "key": key})
    print(key)
    print(f"the key of {name}; it is not shown again: the store keeps its SHA-256", file=sys.stderr)
