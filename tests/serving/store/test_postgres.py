"""Postgres: connections that are lost, a server that is down, tables of the future, passwords that nobody reads."""

import pytest

from metalora.serving.store import StoreFailure, open_store
from support.stored_tasks import add_tenant, create, new_task

psycopg = pytest.importorskip("psycopg", reason='needs pip install "metalora[postgres]"')


@pytest.fixture
def store(postgres_url, monkeypatch):
    monkeypatch.setattr("metalora.serving.store.postgres.WAIT_SECONDS", 0.5)
    opened = open_store(postgres_url)
    yield opened
    opened.close()


def test_a_server_that_was_restarted_is_used_again_and_one_that_is_down_is_an_error(store, postgres):
    tenant = add_tenant(store)
    stored = create(store, tenant, 1)
    postgres.stop()
    postgres.start()
    assert store.content(tenant, stored.id, 1) == new_task(1).content
    postgres.stop()
    try:
        for use in (store.check, lambda: create(store, tenant)):
            with pytest.raises(StoreFailure, match="postgresql://postgres@.*the store cannot be") as error:
                use()
            assert "secret-of-tests" not in str(error.value)
    finally:
        postgres.start()
    create(store, tenant, 2)
    assert len(store.tasks(tenant, limit=10)) == 2


def test_tables_of_the_future_are_refused(store, postgres_url):
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE metalora.schema_version SET version = 2")
    with pytest.raises(ValueError, match="has version 2, this library reads 1"):
        open_store(postgres_url)


def test_a_database_without_tables_is_no_store_unless_one_is_created(postgres_url):
    with pytest.raises(ValueError, match="there is no store"):
        open_store(postgres_url, create=False)


def test_a_commit_waits_for_the_disk_whatever_the_database_says(postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("ALTER DATABASE postgres SET synchronous_commit TO off")
        store = open_store(postgres_url)
        assert store.database.read("SHOW synchronous_commit") == [("on",)]
        store.close()
        connection.execute("ALTER DATABASE postgres RESET synchronous_commit")


@pytest.mark.parametrize(
    "url, message",
    (
        ("postgresql://u:secret@127.0.0.1:1/x", "postgresql://u@127.0.0.1:1/x: the store cannot be opened .*refused"),
        ("postgresql://u:secret@127.0.0.1:port/x", "cannot be opened|is not one that Postgres takes"),
        ("postgresql://u:secret@[/x", "the URL of the store is not one that Postgres takes"),
    ),
)
def test_no_message_has_the_password(url, message):
    with pytest.raises(ValueError, match=message) as error:
        open_store(url)
    assert "secret" not in str(error.value)
