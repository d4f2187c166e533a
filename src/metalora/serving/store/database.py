"""What a store needs of a database: rows of a query, and a transaction that survives a crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

Row = tuple[Any, ...]
Result = TypeVar("Result")


class Transaction(Protocol):
    """A transaction that is open. Parameters stand as `?` in a statement."""

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Run a statement and return its rows; a statement that returns none gives an empty list."""

    def run_many(self, statement: str, parameters: Sequence[Sequence[Any]]) -> None:
        """Run a statement without rows once for each sequence of parameters."""


class Database(Protocol):
    """A database whose schema exists. All methods may be called from any thread.

    Attributes:
        row_lock: What ends a SELECT of a row that the transaction locks.
    """

    row_lock: str

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query; StoreFailure if it fails."""

    def write(self, work: Callable[[Transaction], Result]) -> Result:
        """Do work in a transaction, and return its result when the disk has it.

        Args:
            work: What is done. It may be done again from the start, if another transaction was in its way.

        Raises:
            StoreFailure: The database cannot be written; nothing of the work is in it. (Only if the connection to a
                server is lost during the commit, all of it may be.)
            Exception: What the work has raised; nothing of it is in the database.
        """

    def check(self) -> None:
        """Raise a StoreFailure if the database does not answer."""

    def close(self) -> None:
        """Finish what is being written and close."""
