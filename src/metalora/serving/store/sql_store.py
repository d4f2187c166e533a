"""The store on a database of tables: the statements, which are the same for every database."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from metalora._util.suggest import closest
from metalora.serving.store.base import (
    Example,
    KeyReused,
    LimitReached,
    NewTask,
    StoredTask,
    StoreFailure,
    Tenant,
    VersionConflict,
)
from metalora.serving.store.database import Database, Transaction
from metalora.serving.store.rows import (
    TASK_COLUMNS,
    TENANT_COLUMNS,
    example_of_row,
    example_row,
    new_task_id,
    now,
    packed,
    searchable,
    summary_text,
    task_checksum,
    task_of_row,
    tenant_of_row,
    unpacked,
)

LONGEST_NAME = 200
REMEMBERED = timedelta(days=1)  # an idempotency key


class SqlStore:
    """A store on a database; see `Store` for what its methods do.

    Args:
        database: The database.
    """

    def __init__(self, database: Database):
        self.database = database

    # ---- tenants ---------------------------------------------------------------------------------------------------
    def add_tenant(self, name: str, key_digest: bytes) -> Tenant:
        """Add a tenant; ValueError if the name is taken or is no name."""
        _check_name(name)

        def work(transaction: Transaction) -> Tenant:
            rows = transaction.run(
                "INSERT INTO tenants (name, key_sha256, created, revoked) VALUES (?, ?, ?, 0)"
                f" ON CONFLICT DO NOTHING RETURNING {TENANT_COLUMNS}",
                (name, key_digest, now()),
            )
            if not rows:
                raise ValueError(f"there is a tenant {name!r} already, or one with this key: choose another name")
            return tenant_of_row(rows[0])

        return self.database.write(work)

    def tenants(self) -> list[Tenant]:
        """Return all tenants, by their numbers."""
        return [tenant_of_row(row) for row in self.database.read(f"SELECT {TENANT_COLUMNS} FROM tenants ORDER BY id")]

    def revoke(self, name: str) -> None:
        """Make the key of a tenant invalid; ValueError with the nearest name if there is no such tenant."""

        def work(transaction: Transaction) -> None:
            if not transaction.run("UPDATE tenants SET revoked = 1 WHERE name = ? RETURNING id", (searchable(name),)):
                close = closest(name, [row[0] for row in transaction.run("SELECT name FROM tenants")])
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"there is no tenant {name!r}{hint}")

        self.database.write(work)

    def tenant_of(self, key_digest: bytes) -> Tenant | None:
        """Return the tenant with this key (SHA-256 of it); None if there is none or the key was revoked."""
        query = f"SELECT key_sha256, {TENANT_COLUMNS} FROM tenants WHERE key_sha256 = ? AND revoked = 0"
        for stored, *columns in self.database.read(query, (key_digest,)):
            if hmac.compare_digest(stored, key_digest):
                return tenant_of_row(columns)
        return None

    # ---- tasks -----------------------------------------------------------------------------------------------------
    def create_task(
        self,
        tenant: int,
        task: NewTask,
        *,
        limit: int,
        idempotency_key: str | None = None,
        request_digest: bytes = b"",
    ) -> tuple[StoredTask, bool]:
        """Store a task, and return it, and whether it is new: a known idempotency key gives the task of then."""
        stored_content = packed(task.content)  # before the transaction, in which other writers wait

        def work(transaction: Transaction) -> tuple[StoredTask, bool]:
            self._lock_tenant(transaction, tenant)
            if idempotency_key is not None:
                rows = transaction.run(*_request_query(tenant, idempotency_key))
                if (known := _known_task(rows, request_digest)) is not None:
                    return known, False
            _check_limit(transaction, tenant, limit)
            number, stored = _insert_task(transaction, tenant, task, stored_content)
            _write_examples(transaction, number, task.examples or ())
            if idempotency_key is not None:
                _remember(transaction, tenant, idempotency_key, request_digest, number)
            return stored, True

        return self.database.write(work)

    def known_request(self, tenant: int, idempotency_key: str, request_digest: bytes) -> StoredTask | None:
        """Return the task that a request with this idempotency key has created, or None."""
        return _known_task(self.database.read(*_request_query(tenant, idempotency_key)), request_digest)

    def task(self, tenant: int, task_id: str) -> StoredTask | None:
        """Return a task, or None if this tenant has none of this id."""
        query = f"SELECT {TASK_COLUMNS} FROM tasks WHERE tenant = ? AND id = ?"
        rows = self.database.read(query, (tenant, searchable(task_id)))
        return task_of_row(rows[0]) if rows else None

    def content(self, tenant: int, task_id: str, version: int) -> bytes | None:
        """Return the task file of a version; None if it is no longer there."""
        query = "SELECT learner, checksum, content FROM tasks WHERE tenant = ? AND id = ? AND version = ?"
        for learner, checksum, stored in self.database.read(query, (tenant, searchable(task_id), version)):
            if task_checksum(task_id, version, learner, stored) != checksum:
                raise StoreFailure(f"task {task_id}: does not match its checksum: it was damaged after it was written")
            return unpacked(stored)
        return None

    def replace_task(self, tenant: int, task_id: str, task: NewTask, *, version: int) -> StoredTask:
        """Store the next version of a task, which was made from a version."""
        stored = packed(task.content)

        def work(transaction: Transaction) -> StoredTask:
            rows = transaction.run(
                "UPDATE tasks SET version = ?, learner = ?, size = ?, keeps_examples = ?, updated = ?, checksum = ?,"
                " summary = ?, content = ? WHERE tenant = ? AND id = ? AND version = ?"
                f" RETURNING number, {TASK_COLUMNS}",
                (
                    version + 1,
                    task.learner,
                    len(task.content),
                    int(task.examples is not None),
                    now(),
                    task_checksum(task_id, version + 1, task.learner, stored),
                    summary_text(task),
                    stored,
                    tenant,
                    searchable(task_id),
                    version,
                ),
            )
            if not rows:
                raise _why_not_replaced(transaction, tenant, task_id, version)
            number, *columns = rows[0]
            _write_examples(transaction, number, task.examples or ())
            return task_of_row(columns)

        return self.database.write(work)

    def delete_task(self, tenant: int, task_id: str) -> bool:
        """Delete a task with all that belongs to it; False if there is none."""
        statement = "DELETE FROM tasks WHERE tenant = ? AND id = ? RETURNING id"
        return self.database.write(lambda transaction: bool(transaction.run(statement, (tenant, searchable(task_id)))))

    def tasks(self, tenant: int, *, limit: int, after: str | None = None) -> list[StoredTask]:
        """Return tasks in the order of their ids, those after an id."""
        query = f"SELECT {TASK_COLUMNS} FROM tasks WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
        return [task_of_row(row) for row in self.database.read(query, (tenant, searchable(after or ""), limit))]

    def examples(self, tenant: int, task_id: str) -> list[Example] | None:
        """Return the examples of a task in the order they were given; None if they are not kept."""
        query = """
            SELECT position, kind, label, group_name, examples.checksum, examples.content
            FROM tasks LEFT JOIN examples ON examples.task = tasks.number
            WHERE tenant = ? AND tasks.id = ? AND keeps_examples = 1 ORDER BY position
        """
        rows = self.database.read(query, (tenant, searchable(task_id)))
        if not rows:
            return None
        place = f"task {task_id}: example "
        return [example_of_row(row[1:], f"{place}{row[0]}") for row in rows if row[0] is not None]

    # ---- all tenants: for the service itself -----------------------------------------------------------------------
    def outdated(self, learner: str, *, limit: int, after: str = "") -> list[tuple[int, StoredTask]]:
        """Return tasks that an older learner made and that keep their examples, with their tenants.

        Args:
            learner: Fingerprint of the older learner.
            limit: Largest number of tasks.
            after: They are in the order of their ids, those after this one.
        """
        query = f"""
            SELECT tenant, {TASK_COLUMNS} FROM tasks
            WHERE learner = ? AND keeps_examples = 1 AND id > ? ORDER BY id LIMIT ?
        """
        return [(row[0], task_of_row(row[1:])) for row in self.database.read(query, (learner, after, limit))]

    def count_by_learner(self) -> dict[str, int]:
        """Return how many tasks each learner has made: fingerprint -> number."""
        return dict(self.database.read("SELECT learner, count(*) FROM tasks GROUP BY learner ORDER BY learner"))

    def check(self) -> None:
        """Raise a StoreFailure if the store does not answer."""
        self.database.check()

    def close(self) -> None:
        """Write what is pending and close."""
        self.database.close()

    def _lock_tenant(self, transaction: Transaction, tenant: int) -> None:
        """Let other writers of a tenant wait until the transaction ends, so that its tasks can be counted."""
        if not transaction.run(f"SELECT id FROM tenants WHERE id = ?{self.database.row_lock}", (tenant,)):
            raise ValueError(f"there is no tenant number {tenant}")


def _check_name(name: str) -> None:
    if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"{name!r} is no name of a tenant: 1 to {LONGEST_NAME} printable characters")


def _check_limit(transaction: Transaction, tenant: int, limit: int) -> None:
    ((count,),) = transaction.run("SELECT count(*) FROM tasks WHERE tenant = ?", (tenant,))
    if count >= limit:
        raise LimitReached(f"this tenant has {count} tasks, and may have {limit}: delete one first")


def _insert_task(transaction: Transaction, tenant: int, task: NewTask, stored: bytes) -> tuple[int, StoredTask]:
    """Insert a task with its packed content, and return its number and the task."""
    task_id, time = new_task_id(), now()
    ((number, *columns),) = transaction.run(
        "INSERT INTO tasks (tenant, id, version, learner, size, keeps_examples, created, updated, checksum, summary,"
        f" content) VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING number, {TASK_COLUMNS}",
        (
            tenant,
            task_id,
            task.learner,
            len(task.content),
            int(task.examples is not None),
            time,
            time,
            task_checksum(task_id, 1, task.learner, stored),
            summary_text(task),
            stored,
        ),
    )
    return number, task_of_row(columns)


def _write_examples(transaction: Transaction, number: int, examples: Sequence[Example]) -> None:
    """Make these the examples of a task; those that are stored already, in their places, are not written again."""
    stored = transaction.run("SELECT checksum FROM examples WHERE task = ? ORDER BY position", (number,))
    rows = [example_row(number, position, example) for position, example in enumerate(examples)]
    same = 0
    while same < min(len(stored), len(rows)) and stored[same][0] == rows[same][5]:
        same += 1
    transaction.run("DELETE FROM examples WHERE task = ? AND position >= ?", (number, same))
    transaction.run_many(
        "INSERT INTO examples (task, position, kind, label, group_name, checksum, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows[same:],
    )


def _why_not_replaced(transaction: Transaction, tenant: int, task_id: str, version: int) -> Exception:
    query = "SELECT version FROM tasks WHERE tenant = ? AND id = ?"
    rows = transaction.run(query, (tenant, searchable(task_id)))
    if not rows:
        return KeyError(task_id)
    return VersionConflict(f"task {task_id} has version {rows[0][0]}, not {version}: read it again")


def _key_digest(idempotency_key: str) -> bytes:
    return hashlib.sha256(idempotency_key.encode("utf-8", "surrogatepass")).digest()


def _request_query(tenant: int, idempotency_key: str) -> tuple[str, tuple[Any, ...]]:
    """Return the query for the digest of a remembered request and the task that it has made, and its parameters."""
    columns = ", ".join(f"tasks.{column}" for column in TASK_COLUMNS.split(", "))
    query = f"""
        SELECT request_digest, {columns} FROM requests JOIN tasks ON tasks.number = requests.task
        WHERE requests.tenant = ? AND idempotency_key = ? AND requests.created >= ?
    """
    return query, (tenant, _key_digest(idempotency_key), now(before=REMEMBERED))


def _known_task(rows: Sequence[Sequence[Any]], request_digest: bytes) -> StoredTask | None:
    for known_digest, *columns in rows:
        if known_digest != request_digest:
            raise KeyReused("this idempotency key was used before with another request: choose a new key")
        return task_of_row(columns)
    return None


def _remember(transaction: Transaction, tenant: int, idempotency_key: str, request_digest: bytes, number: int) -> None:
    """Remember which task a request has made, and forget the tenant's old requests."""
    oldest = now(before=REMEMBERED)
    transaction.run("DELETE FROM requests WHERE tenant = ? AND created < ?", (tenant, oldest))
    transaction.run(
        "INSERT INTO requests (tenant, idempotency_key, request_digest, task, created) VALUES (?, ?, ?, ?, ?)",
        (tenant, _key_digest(idempotency_key), request_digest, number, now()),
    )
