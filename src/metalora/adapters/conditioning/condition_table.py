"""Many conditions of one adapter in one matrix, from which a batch of them is read at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from metalora._util.sending import sent
from metalora.adapters.conditioning.check import check_shapes
from metalora.adapters.conditioning.condition import Condition, Maker, Origin, common_maker, common_origin

FIRST_CAPACITY = 16


class ConditionTable:
    """Conditions of one adapter, one row of a matrix each; threads may use one table together.

    `take` reads the conditions of a whole batch by one `index_select`, for any number of targets. Every condition has a
    number that no other condition of the table ever gets, so that the number of a removed one cannot name another one;
    its row of the matrix is used again. The features of the conditions, which no forward needs, are not kept.

    Args:
        dtype: The type that the numbers are stored in, such as float16; None: that of the first condition.

    Example:
        >>> condition = Condition({"C": torch.ones(1, 2, 2)}, torch.zeros(1, 5), torch.tensor(0.0))
        >>> table = ConditionTable.of([condition, condition])
        >>> third = table.add(Condition({"C": torch.zeros(1, 2, 2)}, torch.zeros(1, 5), torch.tensor(0.0)))
        >>> table.take([third, 0, 0]).values["C"].shape
        torch.Size([3, 2, 2])
        >>> table.remove(third)
        >>> len(table)
        2
    """

    def __init__(self, dtype: torch.dtype | None = None):
        self.dtype = dtype
        self.maker: Maker | None = None
        self.origin: Origin | None = None
        self._lock = threading.Lock()
        self._shapes: dict[str, tuple[int, ...]] = {}  # key of a generated factor -> its shape
        self._matrix: Tensor | None = None  # (capacity, numbers of all factors)
        self._result_dtype = torch.float32
        self._rows: dict[int, int] = {}  # number of a condition -> its row
        self._free: list[int] = []
        self._released: deque[int] = deque()  # numbers of rows that nobody holds any more
        self._next = 0

    @classmethod
    def of(cls, conditions: Iterable[Condition], dtype: torch.dtype | None = None) -> ConditionTable:
        """Return a table of conditions, which have the numbers 0, 1, ... in it; the arguments are those of `add`."""
        table = cls(dtype)
        for condition in conditions:
            table.add(condition)
        return table

    def __len__(self) -> int:
        """Return the number of conditions."""
        with self._lock:
            self._forget_released()
            return len(self._rows)

    @property
    def bytes(self) -> int:
        """The size of the matrix, with the rows that are free."""
        return 0 if self._matrix is None else self._matrix.nbytes

    def add(self, condition: Condition) -> int:
        """Store a condition and return its number.

        Args:
            condition: One condition, n = 1, on any device; its values are copied to the device of the first one.

        Raises:
            ValueError: It is not one condition, another adapter made it, its factors or their shapes differ from those
                in the table, or a number is not finite in the type of the table.
        """
        if len(condition) != 1:
            raise ValueError(f"a row of a table has one condition, not one for {len(condition)} examples")
        with self._lock:
            self._forget_released()
            maker, origin = self._common(condition)
            numbers = self._checked(condition)
            if self._matrix is None:
                first = next(iter(condition.values.values()))
                self._shapes, self._result_dtype = _shapes_of(condition), first.dtype
                self._matrix = numbers.new_zeros(0, len(numbers))
            row = self._free_row(self._matrix)
            self._matrix[row] = numbers
            self.maker, self.origin = maker, origin
            number, self._next = self._next, self._next + 1
            self._rows[number] = row
            return number

    def keep(self, condition: Condition) -> TableRow:
        """Store a condition for as long as the row lives that this returns; the arguments are those of `add`."""
        return TableRow(self, self.add(condition))

    def release(self, number: int) -> None:
        """Forget a condition when the next one is added, or the conditions are counted.

        It takes no lock: Python may destroy a row at any time, also while this thread is in a method of the table.

        Args:
            number: Number of a condition in the table.
        """
        self._released.append(number)

    def _forget_released(self) -> None:
        while self._released:
            number = self._released.popleft()
            if number in self._rows:  # otherwise `remove` has been called, too
                self._forget(number)

    def _forget(self, number: int) -> None:
        row = self._row(number)
        del self._rows[number]
        self._free.append(row)

    def _checked(self, condition: Condition) -> Tensor:
        """Return all numbers of a condition as the matrix has them, (total,); ValueError if they do not fit."""
        shapes = self._shapes or _shapes_of(condition)
        check_shapes(shapes, condition.values, 1, "the condition")
        if unknown := sorted(condition.values.keys() - shapes.keys()):
            raise ValueError(f"the condition: {unknown[0]!r} is not a factor of the conditions in the table")
        numbers = torch.cat([condition.values[key].detach().reshape(-1) for key in shapes])
        numbers = numbers.to(self.dtype or numbers.dtype) if self._matrix is None else numbers.to(self._matrix)
        if not numbers.isfinite().all():
            raise ValueError(f"the condition: a number is not finite in {numbers.dtype}")
        return numbers

    def _common(self, condition: Condition) -> tuple[Maker | None, Origin | None]:
        """Return the maker and the origin of the conditions in the table and of another one."""
        stored = Condition({}, condition.features, condition.penalty, self.maker, self.origin)
        return common_maker([stored, condition]), common_origin([stored, condition])

    def _free_row(self, matrix: Tensor) -> int:
        """Return a row that is free, after doubling the matrix if there is none."""
        if not self._free:
            capacity = len(matrix)
            larger = matrix.new_zeros(max(FIRST_CAPACITY, 2 * capacity), matrix.shape[1])
            larger[:capacity] = matrix
            self._matrix = larger
            self._free = list(range(len(larger) - 1, capacity - 1, -1))
        return self._free.pop()

    def remove(self, number: int) -> None:
        """Forget a condition; its row becomes free.

        Raises:
            ValueError: There is no condition of this number (any more).
        """
        with self._lock:
            self._forget(number)

    def take(self, numbers: Sequence[int] | Tensor) -> Condition:
        """Return the conditions of these numbers as one condition, without features, (n, 0).

        Args:
            numbers: Numbers that `add` has returned, (n,), in any order; one may occur several times.

        Returns:
            A condition of n examples, a copy of what the table has now, in the type of the first one that was added.

        Raises:
            ValueError: A number is not that of a condition in the table.
        """
        wanted = numbers.tolist() if isinstance(numbers, Tensor) else numbers
        with self._lock:
            rows = [self._row(number) for number in wanted]
            if self._matrix is None:
                raise ValueError("the table has no condition to take")
            index = sent(torch.tensor(rows, dtype=torch.int64), self._matrix.device)
            taken = self._matrix.index_select(0, index).to(self._result_dtype)  # (n, numbers of all factors)
        sizes = [prod(shape) for shape in self._shapes.values()]
        values = {
            key: part if len(shape) == 1 else part.reshape(-1, *shape)
            for (key, shape), part in zip(self._shapes.items(), torch.split(taken, sizes, 1), strict=True)
        }
        return Condition(values, taken[:, :0], taken.new_zeros(()), self.maker, self.origin)

    def _row(self, number: int) -> int:
        row = self._rows.get(number)
        if row is None:
            raise ValueError(f"condition {number} is not in the table (any more): it has {len(self._rows)} others")
        return row


class TableRow:
    """A condition in a table, which keeps it for as long as this object lives.

    Args:
        table: The table.
        number: Number of the condition.

    Example:
        >>> table = ConditionTable()
        >>> row = table.keep(Condition({"C": torch.ones(1, 2)}, torch.zeros(1, 5), torch.tensor(0.0)))
        >>> row.condition().values["C"]
        tensor([[1., 1.]])
        >>> del row
        >>> len(table)
        0
    """

    __slots__ = ("number", "table")

    def __init__(self, table: ConditionTable, number: int):
        self.table, self.number = table, number

    def condition(self) -> Condition:
        """Return a copy of the condition."""
        return self.table.take([self.number])

    def __del__(self) -> None:
        """Give the row of the matrix back to the table."""
        self.table.release(self.number)


def stacked(stored: Sequence[Condition | TableRow]) -> Condition:
    """Return conditions one after another, as one condition; those of one table are read at once.

    Args:
        stored: At least one condition, or row of a table.

    Raises:
        ValueError: Different adapters made two of them.
    """
    rows = [each for each in stored if isinstance(each, TableRow)]
    if len(rows) == len(stored) and len({id(row.table) for row in rows}) == 1:
        return rows[0].table.take([row.number for row in rows])
    return Condition.stack([each.condition() if isinstance(each, TableRow) else each for each in stored])


def _shapes_of(condition: Condition) -> dict[str, tuple[int, ...]]:
    """Return key of a generated factor -> its shape."""
    return {key: tuple(value.shape[1:]) for key, value in condition.values.items()}
