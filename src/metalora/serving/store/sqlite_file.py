"""The file of a SQLite store: created privately and whole, opened only if it is what it should be."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from metalora.serving.store.schema import SCHEMA_VERSION, TypeNames, schema_statements

APPLICATION_ID = 0x6D6C6F72  # "mlor": the file says whose it is
TYPES = TypeNames(number="INTEGER PRIMARY KEY", integer="INTEGER", text="TEXT", bytes="BLOB")
PAGE_BYTES = 2048  # of 1 to 16 KiB it wastes little at the end of contents, and writes as fast as any
BUSY_SECONDS = 20.0
CACHE_KIB = 128  # of each connection
LARGEST_IDLE_LOG = 4 * 2**20


def open_file(path: Path, create: bool) -> sqlite3.Connection:
    """Open the file of a store, or create it, and return a connection that may write.

    Args:
        path: The file.
        create: Whether it is created if there is none.

    Raises:
        ValueError: It cannot be opened or written, or is no store of this version.
    """
    if not create and not path.exists():
        raise ValueError(f"{path}: there is no store")
    try:
        _create_privately(path)
        connection = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise ValueError(f"{path}: the store cannot be opened ({_reason(error)})") from None
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise ValueError(f"{path}: the store cannot be opened ({error})") from None
    except ValueError:
        connection.close()
        raise
    return connection


def connect(path: Path, *, reads_only: bool = False) -> sqlite3.Connection:
    """Return a connection to a file that exists; whoever holds it may be in any thread.

    Args:
        path: The file.
        reads_only: Whether it refuses to write.
    """
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    settings = {
        "foreign_keys": "ON",
        "synchronous": "FULL",  # a commit returns when the disk has it
        "secure_delete": "ON",  # what is deleted is overwritten
        "cache_size": -CACHE_KIB,
        "mmap_size": 0,  # mapped pages would count as memory of the process
        "journal_size_limit": LARGEST_IDLE_LOG,
        "query_only": "ON" if reads_only else "OFF",
    }
    for name, value in settings.items():
        connection.execute(f"PRAGMA {name} = {value}")
    return connection


def _create_privately(path: Path) -> None:
    """Create an empty file that only its owner may read, unless there is one."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # otherwise the name of the file may be lost in a crash
    finally:
        os.close(folder)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Bring a file into the form of a store; one that has it stays as it is.

    Raises:
        ValueError: The file is something else, or of a newer version.
    """
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("BEGIN IMMEDIATE")  # of several processes, one creates the tables
    try:
        if _number(connection, "SELECT count(*) FROM sqlite_master") == 0:
            for statement in schema_statements(TYPES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        _check(connection, path)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    _write_ahead(connection)


def _check(connection: sqlite3.Connection, path: Path) -> None:
    if _number(connection, "PRAGMA application_id") != APPLICATION_ID:
        raise ValueError(f"{path}: is a database of another program, not a store of metalora")
    version = _number(connection, "PRAGMA user_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: the store has version {version}, this library reads {SCHEMA_VERSION}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Choose the write-ahead log; SQLite does not wait by itself for others that do the same."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _number(connection: sqlite3.Connection, query: str) -> int:
    ((number,),) = connection.execute(query).fetchall()
    return int(number)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
