"""The file of a SQLite store: private, of one version, checked; a broken disk is an error and nothing else."""

import contextlib
import os
import sqlite3
import stat
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metalora.serving.store import StoreFailure, open_store
from metalora.serving.store.sqlite import SqliteDatabase
from support.fresh_process import run_fresh
from support.stored_tasks import add_tenant, create, example, new_task

FULL_DISK = """
import os, resource, sys
from metalora.serving.store import NewTask, StoreFailure, open_store

path = sys.argv[1]
store = open_store(path)
tenant = store.add_tenant("tenant", b"key").id
tasks = lambda: [task.id for task in store.tasks(tenant, limit=99)]
written = []
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
try:
    while True:
        written.append(store.create_task(tenant, NewTask("learner", os.urandom(20_000), {}), limit=99)[0].id)
except StoreFailure as error:
    print(error)
assert 2 <= len(written) <= 8 and tasks() == sorted(written), written
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
written.append(store.create_task(tenant, NewTask("learner", os.urandom(20_000), {}), limit=99)[0].id)
store.check()
store.close()
store = open_store(path)
assert tasks() == sorted(written)
assert all(len(store.content(tenant, task, 1)) == 20_000 for task in written)
"""
READ_ONLY = """
import os, sys
from metalora.serving.store import open_store

os.setuid(65534)
open_store(sys.argv[1])
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tasks.db"


@pytest.fixture
def store(path):
    opened = open_store(path)
    yield opened
    opened.close()


def test_only_the_owner_may_read_the_files(store, path):
    create(store, add_tenant(store))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("tasks.db", "tasks.db-wal", "tasks.db-shm"), 0o600)


def test_a_commit_waits_for_the_disk_and_deleted_content_is_overwritten(store, path):
    connection = store.database._connection
    settings = {"synchronous": 2, "secure_delete": 1, "foreign_keys": 1, "journal_mode": "wal", "mmap_size": 0}
    assert {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in settings} == settings
    tenant, content = add_tenant(store), new_task(1, 9000).content
    stored = create(store, tenant, 1, size=9000, examples=[example(7)])
    parts = content[:100], content[-100:], example(7).content
    store.close()
    assert all(part in path.read_bytes() for part in parts)
    store = open_store(path)
    store.delete_task(tenant, stored.id)
    store.close()
    assert not any(part in path.read_bytes() for part in parts)


def test_writes_that_wait_are_committed_together(store):
    tenant = add_tenant(store)
    database, commits = store.database, []
    commit = database._in_one_transaction
    database._in_one_transaction = lambda jobs: commits.append(len(jobs)) or commit(jobs)
    with ThreadPoolExecutor(16) as pool:
        blocker = pool.submit(database.write, lambda _: time.sleep(0.3))
        waiting = [pool.submit(create, store, tenant, number) for number in range(10)]
        [blocker.result(), *(task.result() for task in waiting)]
    assert len(commits) <= 3 and sum(commits) == 11 and len(store.tasks(tenant, limit=99)) == 10


def test_a_full_disk_is_an_error_and_the_store_goes_on_when_there_is_room(path):
    done = run_fresh(FULL_DISK, path)
    assert done.returncode == 0, done.stderr
    assert f"{path}: the store cannot be written (" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not write")
def test_a_file_that_may_not_be_written_is_refused(path):
    open_store(path).close()
    path.chmod(0o444)
    temporary = Path(tempfile.gettempdir())
    for folder in path.parents:
        if folder != temporary and folder.is_relative_to(temporary):
            folder.chmod(0o755)
    done = run_fresh(READ_ONLY, path)
    assert f"ValueError: {path}: the store cannot be opened (" in done.stderr and "readonly" in done.stderr


def test_a_file_that_was_removed_is_an_error_of_the_next_write(store, path):
    tenant = add_tenant(store)
    path.rename(path.with_name("elsewhere"))
    for use in (store.check, lambda: create(store, tenant)):
        with pytest.raises(StoreFailure, match="tasks.db: the file of the store was removed or replaced"):
            use()


def edited(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


OTHERS = {  # what is done to a new file, and what the error says
    "of the future": (lambda path: edited(path, "PRAGMA user_version = 2"), "has version 2, this library reads 1"),
    "of another program": (lambda path: edited(path, "PRAGMA application_id = 1"), "a database of another program"),
    "no database": (lambda path: path.write_bytes(b"no database at all" * 100), "file is not a database"),
    "a folder": (lambda path: path.unlink() or path.mkdir(), "unable to open database file"),
    "without a folder": (lambda path: path.unlink() or path.parent.rmdir(), "No such file or directory"),
}


@pytest.mark.parametrize("change, message", OTHERS.values(), ids=OTHERS)
def test_a_file_that_is_no_store_of_this_version_is_refused(tmp_path, change, message):
    path = tmp_path / "folder" / "tasks.db"
    path.parent.mkdir()
    open_store(path).close()
    change(path)
    with pytest.raises(ValueError, match=f"tasks.db: .*{message}"):
        open_store(path)


def test_a_flipped_bit_in_the_file_is_found(store, path):
    tenant = add_tenant(store)
    stored = create(store, tenant, 1, size=9000)
    store.close()
    raw = path.read_bytes()
    place = raw.index(new_task(1, 9000).content[-50:])
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
    again = open_store(path)
    assert again.task(tenant, stored.id) == stored
    with pytest.raises(StoreFailure, match=f"task {stored.id}: does not match its checksum"):
        again.content(tenant, stored.id, 1)
    again.close()


def test_many_readers_hold_a_bounded_cache(path):
    database = SqliteDatabase(path, create=True)
    database.read("SELECT 1")
    settings = {"cache_size": -128, "mmap_size": 0, "query_only": 1}
    assert {name: database.read(f"PRAGMA {name}")[0][0] for name in settings} == settings
    with pytest.raises(StoreFailure, match="readonly"):
        database.read("DELETE FROM tasks")
    database.close()
