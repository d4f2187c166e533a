"""Every test of a store runs on SQLite and on Postgres."""

import pytest

from metalora.serving.store import open_store
from support.postgres_server import PostgresServer, postgres_programs


@pytest.fixture(scope="session")
def postgres():
    """A server, started once."""
    if postgres_programs() is None:
        pytest.skip("Postgres is not installed (no initdb)")
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
def postgres_url(postgres):
    """The URL of a database without tables."""
    psycopg = pytest.importorskip("psycopg", reason='needs pip install "metalora[postgres]"')
    with psycopg.connect(postgres.url) as connection:
        connection.execute("DROP SCHEMA IF EXISTS metalora CASCADE")
    return postgres.url


@pytest.fixture(params=("sqlite", "postgres"))
def url(request, tmp_path):
    """Where a store may be created."""
    return str(tmp_path / "tasks.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url):
    """An empty store."""
    opened = open_store(url)
    yield opened
    opened.close()
