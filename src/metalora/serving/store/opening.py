"""The store that a path or a URL names."""

from __future__ import annotations

from pathlib import Path

from metalora._util.suggest import check_choice
from metalora.serving.store.base import Store
from metalora.serving.store.database import Database
from metalora.serving.store.sql_store import SqlStore
from metalora.serving.store.sqlite import SqliteDatabase

POSTGRES = "postgresql://"


def open_store(url: str | Path, *, create: bool = True) -> Store:
    """Open a store, or create it if there is none.

    Args:
        url: The path of a SQLite file, or "postgresql://user:password@host:port/database".
        create: Whether a store that is not there is created.

    Raises:
        ValueError: An unknown kind of URL, or the store cannot be opened, or is of another version.

    Example:
        >>> store = open_store("tasks.db")
        >>> store.add_tenant("a tenant", b"digest of a key").name
        'a tenant'
        >>> store.close()
    """
    return SqlStore(_database(url, create))


def _database(url: str | Path, create: bool) -> Database:
    scheme, separator, _ = str(url).partition("://")
    if not separator:
        return SqliteDatabase(url, create)
    check_choice("kind of store", f"{scheme}://", (POSTGRES, "a path"))
    from metalora.serving.store.postgres import PostgresDatabase  # its driver is an extra

    return PostgresDatabase(str(url), create)
