"""The verbs of the service; heavy imports are inside the verb."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from metalora.cli.render import Json, print_json, show

if TYPE_CHECKING:
    from metalora.serving.store import Store

STORES = "the store of the service: a path (SQLite), or postgresql://user:password@host/database"
StoreUrl = Annotated[str, tyro.conf.arg(metavar="FILE_OR_URL", help=STORES)]


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
