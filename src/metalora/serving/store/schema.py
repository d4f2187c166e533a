"""The tables of a store, for every database."""

from __future__ import annotations

from dataclasses import dataclass

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TypeNames:
    """How a database calls the types of columns.

    Attributes:
        number: A number that a new row gets by itself; the primary key.
        integer: A whole number.
        text: A text that is ordered by its code points.
        bytes: Bytes.
    """

    number: str
    integer: str
    text: str
    bytes: str


def schema_statements(types: TypeNames) -> list[str]:
    """Return the statements that create the tables.

    The content is the last column of a task: a database that reads the other columns does not read its pages.

    Args:
        types: How the database calls the types of columns.

    Example:
        >>> schema_statements(TypeNames("INTEGER PRIMARY KEY", "INTEGER", "TEXT", "BLOB"))[0].split("(")[0]
        'CREATE TABLE tenants '
    """
    number, integer, text, content = types.number, types.integer, types.text, types.bytes
    return [
        f"""CREATE TABLE tenants (
            id {number},
            name {text} NOT NULL UNIQUE,
            key_sha256 {content} NOT NULL UNIQUE,
            created {text} NOT NULL,
            revoked {integer} NOT NULL
        )""",
        f"""CREATE TABLE tasks (
            number {number},
            tenant {integer} NOT NULL REFERENCES tenants (id),
            id {text} NOT NULL,
            version {integer} NOT NULL,
            learner {text} NOT NULL,
            size {integer} NOT NULL,
            keeps_examples {integer} NOT NULL,
            created {text} NOT NULL,
            updated {text} NOT NULL,
            checksum {content} NOT NULL,
            summary {text} NOT NULL,
            content {content} NOT NULL,
            UNIQUE (tenant, id)
        )""",
        "CREATE INDEX tasks_by_learner ON tasks (learner, keeps_examples, id)",
        f"""CREATE TABLE examples (
            task {integer} NOT NULL REFERENCES tasks (number) ON DELETE CASCADE,
            position {integer} NOT NULL,
            kind {text} NOT NULL,
            label {text} NOT NULL,
            group_name {text} NOT NULL,
            checksum {content} NOT NULL,
            content {content} NOT NULL,
            PRIMARY KEY (task, position)
        )""",
        f"""CREATE TABLE requests (
            tenant {integer} NOT NULL REFERENCES tenants (id),
            idempotency_key {content} NOT NULL,
            request_digest {content} NOT NULL,
            task {integer} NOT NULL REFERENCES tasks (number) ON DELETE CASCADE,
            created {text} NOT NULL,
            PRIMARY KEY (tenant, idempotency_key)
        )""",
        "CREATE INDEX requests_by_task ON requests (task)",
    ]
