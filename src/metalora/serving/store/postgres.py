"""Postgres: several machines share one store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool

from metalora.serving.store.base import StoreFailure
from metalora.serving.store.database import Result, Row, Transaction
from metalora.serving.store.schema import SCHEMA_VERSION, TypeNames, schema_statements

TYPES = TypeNames(
    number="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", integer="BIGINT", text='TEXT COLLATE "C"', bytes="BYTEA"
)
MOST_CONNECTIONS = 8
CONNECT_SECONDS = 3
WAIT_SECONDS = 3.0  # for a connection of the pool
SCHEMA = "metalora"
SCHEMA_LOCK = 0x6D6C6F72  # number of the advisory lock under which the tables are created


class PostgresDatabase:
    """A Postgres database as the database of a store; its tables are in the schema `metalora`.

    Args:
        url: "postgresql://user:password@host:port/database".
        create: Whether the tables are created if there are none.

    Raises:
        ValueError: The server cannot be reached, or the tables are not of this version.
    """

    row_lock = " FOR NO KEY UPDATE"

    def __init__(self, url: str, create: bool):
        self.place, self._password = _place_and_password(url)
        try:
            with psycopg.connect(url, connect_timeout=CONNECT_SECONDS) as connection:
                _prepare(connection, self.place, create)
        except psycopg.Error as error:
            raise ValueError(f"{self.place}: the store cannot be opened ({self._reason(error)})") from None
        self._pool = ConnectionPool(
            url,
            min_size=1,
            max_size=MOST_CONNECTIONS,
            timeout=WAIT_SECONDS,
            reconnect_timeout=WAIT_SECONDS,
            configure=_configure,
            kwargs={"connect_timeout": CONNECT_SECONDS, "autocommit": True},
            open=True,
        )

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query; StoreFailure if it fails."""
        return self._on_a_connection(lambda connection: _PostgresTransaction(connection).run(statement, parameters))

    def write(self, work: Callable[[Transaction], Result]) -> Result:
        """Do work in a transaction, and return its result when the server's disk has it; see `Database`."""

        def in_a_transaction(connection: Connection[Row]) -> Result:
            is_committing = False
            try:
                with connection.transaction():
                    result = work(_PostgresTransaction(connection))
                    is_committing = True
                return result
            except psycopg.OperationalError as error:
                if is_committing:
                    raise self._failure("its connection was lost in a commit", error) from None
                raise

        return self._on_a_connection(in_a_transaction)

    def _on_a_connection(self, act: Callable[[Connection[Row]], Result]) -> Result:
        """Return what an act gives; if its connection was lost, it is done once more on another one."""
        try:
            with self._pool.connection() as connection:
                return act(connection)
        except psycopg.OperationalError:
            self._pool.check()  # it replaces connections that were lost
        except psycopg.Error as error:
            raise self._failure("it refuses", error) from None
        try:
            with self._pool.connection() as connection:
                return act(connection)
        except psycopg.Error as error:
            raise self._failure("it does not answer", error) from None

    def check(self) -> None:
        """Raise a StoreFailure if the server does not answer."""
        self.read("SELECT 1")

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def _failure(self, what: str, error: psycopg.Error) -> StoreFailure:
        return StoreFailure(f"{self.place}: the store cannot be used: {what} ({self._reason(error)})")

    def _reason(self, error: psycopg.Error) -> str:
        """Return the message of an error on one line, without the password."""
        message = " ".join(str(error).split()) or type(error).__name__
        return message.replace(self._password, "***") if self._password else message


class _PostgresTransaction:
    """The open transaction of a connection."""

    def __init__(self, connection: Connection[Row]):
        self._connection = connection

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return its rows."""
        cursor = self._connection.execute(_with_places(statement), parameters)
        return cursor.fetchall() if cursor.description is not None else []

    def run_many(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run a statement without rows once for each sequence of parameters."""
        if parameters:
            self._connection.cursor().executemany(_with_places(statement), parameters)


@lru_cache(maxsize=100)
def _with_places(statement: str) -> bytes:
    """Return a statement with the places of its parameters as psycopg writes them."""
    return statement.replace("?", "%s").encode()


def _place_and_password(url: str) -> tuple[str, str]:
    """Return how messages call a database, and its password or "".

    Raises:
        ValueError: The URL is not one of Postgres; the message does not repeat it, since it may hold a password.
    """
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:
        example = "postgresql://user:password@host:5432/database"
        raise ValueError(f"the URL of the store is not one that Postgres takes, such as {example}") from None
    user, host = parts.get("user", ""), parts.get("host", "localhost")
    place = f"postgresql://{user}{'@' if user else ''}{host}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
    return place, str(parts.get("password") or "")


def _configure(connection: Connection[Row]) -> None:
    """Prepare a new connection: where the tables are, and that a commit waits for the disk."""
    connection.execute(f"SET search_path TO {SCHEMA}")
    ((waits,),) = connection.execute("SHOW synchronous_commit").fetchall()
    if waits == "off":
        connection.execute("SET synchronous_commit TO on")


def _prepare(connection: Connection[Row], place: str, create: bool) -> None:
    """Create the tables if there are none; one process at a time.

    Raises:
        ValueError: There are no tables and none are to be created, or they are of another version.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
    if _value(connection, f"SELECT to_regclass('{SCHEMA}.schema_version')") is None:
        if not create:
            raise ValueError(f"{place}: there is no store")
        _create_tables(connection)
    version = _value(connection, f"SELECT version FROM {SCHEMA}.schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{place}: the store has version {version}, this library reads {SCHEMA_VERSION}")


def _create_tables(connection: Connection[Row]) -> None:
    if _value(connection, f"SELECT to_regnamespace('{SCHEMA}')") is None:
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
    connection.execute(f"SET LOCAL search_path TO {SCHEMA}")
    for statement in schema_statements(TYPES):
        connection.execute(statement.encode())
    connection.execute(f"CREATE TABLE schema_version AS SELECT {SCHEMA_VERSION} AS version")


def _value(connection: Connection[Row], query: str) -> Any:
    row = connection.execute(query.encode()).fetchone()
    return None if row is None else row[0]
