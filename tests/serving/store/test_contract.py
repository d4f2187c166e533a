"""What every store does: tenants, tasks, versions, examples, idempotency keys, and nothing of anybody else."""

from datetime import UTC, datetime, timedelta

import pytest

from metalora.serving.keys import key_digest, new_key
from metalora.serving.store import (
    KeyReused,
    LimitReached,
    NewTask,
    StoreFailure,
    VersionConflict,
    open_store,
    sql_store,
)
from support.stored_tasks import NO_LIMIT, STRANGE_IDS, add_tenant, create, example, new_task

DAMAGE = {  # table -> what one flipped bit of its content is found by
    "tasks": lambda store, tenant, task: store.content(tenant, task.id, 1),
    "examples": lambda store, tenant, task: store.examples(tenant, task.id),
}


def test_a_tenant_is_found_by_its_key_until_the_key_is_revoked(store):
    key = new_key()
    anna = store.add_tenant("anna", key_digest(key))
    bert = store.add_tenant("Bört", key_digest(new_key()))
    assert store.tenants() == [anna, bert] and not anna.revoked
    assert store.tenant_of(key_digest(key)) == anna
    assert store.tenant_of(key_digest(key + "x")) is None
    store.revoke("anna")
    assert store.tenant_of(key_digest(key)) is None
    assert [tenant.revoked for tenant in store.tenants()] == [True, False]
    store.revoke("Bört")
    assert all(tenant.revoked for tenant in store.tenants())


def test_a_name_is_taken_once_and_the_nearest_one_is_named(store):
    add_tenant(store, "anna")
    with pytest.raises(ValueError, match="there is a tenant 'anna' already"):
        store.add_tenant("anna", b"another key")
    with pytest.raises(ValueError, match="there is no tenant 'anan'; did you mean 'anna'?"):
        store.revoke("anan")
    for name in ("", " ", "a\nb", "a\0", "x" * 201):
        with pytest.raises(ValueError, match="is no name of a tenant"):
            store.add_tenant(name, b"key")
    assert [tenant.name for tenant in store.tenants()] == ["anna"]


def test_a_task_comes_back_as_it_was_written(store):
    tenant, task = add_tenant(store), new_task(1, size=20_000)
    before = datetime.now(UTC) - timedelta(seconds=1)
    stored, is_new = store.create_task(tenant, task, limit=1)
    assert is_new and stored == store.task(tenant, stored.id)
    assert (stored.version, stored.learner, stored.size) == (1, "learner", 20_000)
    assert stored.summary == task.summary and not stored.keeps_examples
    assert before < datetime.fromisoformat(stored.created) < datetime.now(UTC) and stored.updated == stored.created
    assert stored.id.startswith("t_") and len(stored.id) == 24
    assert store.content(tenant, stored.id, 1) == task.content
    assert store.content(tenant, stored.id, 2) is None
    assert store.examples(tenant, stored.id) is None


def test_everything_is_there_after_the_store_is_opened_again(store, url):
    tenant = add_tenant(store)
    stored = create(store, tenant, 1, examples=[example(1)])
    store.close()
    again = open_store(url, create=False)
    assert again.task(tenant, stored.id) == stored
    assert again.content(tenant, stored.id, 1) == new_task(1).content
    assert again.examples(tenant, stored.id) == [example(1)]
    again.close()


def test_a_tenant_sees_nothing_of_another_one_and_changes_nothing(store):
    owner, stranger = add_tenant(store, "owner"), add_tenant(store, "stranger")
    task = new_task(1, examples=[example(1)])
    stored, _ = store.create_task(owner, task, limit=1, idempotency_key="key", request_digest=b"request")
    assert store.task(stranger, stored.id) is None
    assert store.content(stranger, stored.id, 1) is None
    assert store.examples(stranger, stored.id) is None
    assert store.tasks(stranger, limit=10) == []
    assert store.known_request(stranger, "key", b"request") is None
    assert store.known_request(stranger, "key", b"another request") is None
    assert store.delete_task(stranger, stored.id) is False
    with pytest.raises(KeyError):
        store.replace_task(stranger, stored.id, new_task(2), version=1)
    theirs, is_new = store.create_task(stranger, new_task(2), limit=1, idempotency_key="key", request_digest=b"other")
    assert is_new and theirs.id != stored.id
    assert store.task(owner, stored.id) == stored
    assert store.content(owner, stored.id, 1) == task.content
    assert store.examples(owner, stored.id) == [example(1)]


@pytest.mark.parametrize("task_id", STRANGE_IDS, ids=ascii)
def test_an_id_that_is_none_is_an_id_of_no_task(store, task_id):
    tenant = add_tenant(store)
    create(store, tenant)
    assert store.task(tenant, task_id) is None
    assert store.content(tenant, task_id, 1) is None
    assert store.examples(tenant, task_id) is None
    assert store.delete_task(tenant, task_id) is False
    with pytest.raises(KeyError):
        store.replace_task(tenant, task_id, new_task(), version=1)
    assert len(store.tasks(tenant, limit=10)) == 1


def test_a_tenant_has_no_more_tasks_than_it_may(store):
    tenant, neighbour = add_tenant(store), add_tenant(store, "neighbour")
    stored, _ = store.create_task(tenant, new_task(), limit=1)
    with pytest.raises(LimitReached, match="has 1 tasks, and may have 1"):
        store.create_task(tenant, new_task(), limit=1)
    store.create_task(neighbour, new_task(), limit=1)
    store.delete_task(tenant, stored.id)
    store.create_task(tenant, new_task(), limit=1)
    with pytest.raises(ValueError, match="there is no tenant number 99"):
        store.create_task(99, new_task(), limit=1)


def test_the_same_request_makes_one_task(store):
    tenant = add_tenant(store)
    request = {"limit": 1, "idempotency_key": "schlüssel \0", "request_digest": b"request"}
    first, is_new = store.create_task(tenant, new_task(1), **request)
    assert store.create_task(tenant, new_task(2), **request) == (first, False) and is_new
    assert store.known_request(tenant, "schlüssel \0", b"request") == first
    assert store.known_request(tenant, "another key", b"request") is None
    with pytest.raises(KeyReused):
        store.create_task(tenant, new_task(2), **request | {"request_digest": b"another request"})
    with pytest.raises(KeyReused):
        store.known_request(tenant, "schlüssel \0", b"another request")
    assert store.tasks(tenant, limit=10) == [first]


def test_an_idempotency_key_is_forgotten_with_its_task_and_after_a_day(store, monkeypatch):
    tenant = add_tenant(store)
    request = {"limit": NO_LIMIT, "idempotency_key": "key", "request_digest": b"request"}
    first, _ = store.create_task(tenant, new_task(), **request)
    store.delete_task(tenant, first.id)
    assert store.known_request(tenant, "key", b"request") is None
    second, is_new = store.create_task(tenant, new_task(), **request)
    assert is_new and second.id != first.id
    now = sql_store.now
    monkeypatch.setattr(sql_store, "now", lambda before=timedelta(0): now(before - timedelta(hours=23)))
    assert store.known_request(tenant, "key", b"request") == second
    monkeypatch.setattr(sql_store, "now", lambda before=timedelta(0): now(before - timedelta(hours=25)))
    assert store.known_request(tenant, "key", b"another request") is None
    assert store.create_task(tenant, new_task(), **request)[1]


def test_a_change_makes_the_next_version(store):
    tenant = add_tenant(store)
    first = create(store, tenant, 1)
    second = store.replace_task(tenant, first.id, new_task(2, 700, learner="newer"), version=1)
    assert second == store.task(tenant, first.id)
    assert (second.id, second.version, second.learner, second.size) == (first.id, 2, "newer", 700)
    assert second.summary["name"] == "task 2" and second.created == first.created <= second.updated
    assert store.content(tenant, first.id, 1) is None
    assert store.content(tenant, first.id, 2) == new_task(2, 700).content
    with pytest.raises(VersionConflict, match="has version 2, not 1"):
        store.replace_task(tenant, first.id, new_task(3), version=1)
    assert store.task(tenant, first.id) == second


@pytest.mark.parametrize("later", ([1, 2, 3], [1], [2, 1], [], None), ids=str)
def test_a_version_has_the_examples_that_it_is_given(store, later):
    tenant = add_tenant(store)
    stored = create(store, tenant, examples=[example(1, "a group"), example(2)])
    assert stored.keeps_examples and store.examples(tenant, stored.id) == [example(1, "a group"), example(2)]
    wanted = None if later is None else [example(number) for number in later]
    second = store.replace_task(tenant, stored.id, new_task(examples=wanted), version=1)
    assert second.keeps_examples == (later is not None)
    assert store.examples(tenant, stored.id) == wanted


def test_what_is_deleted_is_gone(store):
    tenant = add_tenant(store)
    stored, other = create(store, tenant, 1, examples=[example(1)]), create(store, tenant, 2, examples=[example(2)])
    assert store.delete_task(tenant, stored.id) is True
    assert store.delete_task(tenant, stored.id) is False
    assert store.task(tenant, stored.id) is None and store.content(tenant, stored.id, 1) is None
    assert store.examples(tenant, stored.id) is None
    with pytest.raises(KeyError):
        store.replace_task(tenant, stored.id, new_task(), version=1)
    assert store.tasks(tenant, limit=10) == [other] and store.examples(tenant, other.id) == [example(2)]
    assert store.database.read("SELECT count(*) FROM examples") == [(1,)]


def test_pages_have_every_task_once_in_the_order_of_ids(store):
    tenant, neighbour = add_tenant(store), add_tenant(store, "neighbour")
    created = [create(store, tenant, number) for number in range(25)]
    create(store, neighbour)
    pages, after = [], None
    while page := store.tasks(tenant, limit=10, after=after):
        pages.append(page)
        after = page[-1].id
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [task for page in pages for task in page] == sorted(created, key=lambda task: task.id)


def test_tasks_of_older_learners_are_found_if_their_examples_are_kept(store):
    first, second = add_tenant(store, "first"), add_tenant(store, "second")
    tasks = {
        (tenant, create(store, tenant, examples=[example(1)], learner="b").id) for tenant in (first, second, first)
    }
    create(store, second, examples=[example(1)], learner="c")
    create(store, second, learner="b")
    expected = sorted(tasks, key=lambda pair: pair[1])
    assert [(tenant, task.id) for tenant, task in store.outdated("b", limit=10)] == expected
    assert [(tenant, task.id) for tenant, task in store.outdated("b", limit=1)] == expected[:1]
    assert [(tenant, task.id) for tenant, task in store.outdated("b", limit=10, after=expected[0][1])] == expected[1:]
    assert store.outdated("a", limit=10) == []
    assert store.count_by_learner() == {"b": 4, "c": 1}


@pytest.mark.parametrize("table", DAMAGE)
def test_damaged_content_is_an_error_that_names_the_task(store, table):
    tenant = add_tenant(store)
    stored = create(store, tenant, examples=[example(1)])
    ((content,),) = store.database.read(f"SELECT content FROM {table}")
    damaged = bytes([content[0] ^ 1]) + bytes(content[1:])
    store.database.write(lambda transaction: transaction.run(f"UPDATE {table} SET content = ?", (damaged,)))
    with pytest.raises(StoreFailure, match=f"task {stored.id}: .*checksum"):
        DAMAGE[table](store, tenant, stored)


def test_what_json_cannot_hold_is_refused_and_leaves_nothing(store):
    tenant = add_tenant(store)
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.create_task(tenant, NewTask("learner", b"", {"accuracy": float("nan")}), limit=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        create(store, tenant, examples=[example(1), example(float("inf"))])
    assert store.tasks(tenant, limit=10) == []


def test_a_closed_store_says_so_and_may_be_closed_again(store):
    tenant = add_tenant(store)
    store.check()
    store.close()
    store.close()
    for use in (store.check, store.tenants, lambda: create(store, tenant)):
        with pytest.raises(StoreFailure, match="closed"):
            use()
