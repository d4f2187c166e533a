"""Tables of CSV, TSV, JSONL and Parquet files, of pandas and of `datasets`, as columns by name."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalora._util.plain_values import parse_json
from metalora.learner.data.labels import Label
from metalora.learner.data.pictures import check_file

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")  # "007" is a text: its zeros would be lost
BOOLEANS = {"true": True, "false": False}
BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # what Excel writes as "Unicode text"


@dataclass(frozen=True, eq=False)
class Table:
    """Columns with a value for every row.

    Attributes:
        name: Name of the table for messages, such as its file name.
        columns: The values by the name of the column, all of the same length.
        folder: The folder of the file; None for a table in memory.
        is_text: Whether all values are texts whose types are not known, as in a CSV file.
    """

    name: str
    columns: Mapping[str, Any]
    folder: Path | None = None
    is_text: bool = False

    @property
    def count(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values())))

    def labels(self, column: str) -> Any:
        """Return the values of a label column; those of a CSV file get a type."""
        values = self.columns[column]
        return typed_cells(values) if self.is_text else values


def read_table_file(path: Path) -> Table:
    """Read a .csv, .tsv, .jsonl or .parquet file.

    CSV and TSV files have a header and are UTF-8 (or UTF-16 with a byte order mark); a semicolon or a tab separates the
    values if the header has these and no comma.

    Raises:
        ValueError: The file is missing or damaged, it has no rows, or two columns have the same name; the message names
            the file and, if there is one, the line.
        ModuleNotFoundError: A Parquet file needs pandas and pyarrow.
    """
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    text = _decoded(path)
    if suffix == ".jsonl":
        columns = _json_columns(text, path)
    else:
        columns = _separated_columns(text, path)
    return Table(path.name, checked_columns(columns, path.name), path.parent, is_text=suffix != ".jsonl")


def checked_columns(columns: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return columns if they have rows, and all the same number.

    Raises:
        ValueError: They do not.

    Example:
        >>> checked_columns({"text": ["a", "b"], "label": [1]}, "t.csv")
        Traceback (most recent call last):
        ValueError: t.csv: the columns have different lengths (text 2, label 1)
    """
    counts = {column: len(values) for column, values in columns.items()}
    if not any(counts.values()):
        raise ValueError(f"{name}: the table has no rows")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{column} {count}" for column, count in counts.items())
        raise ValueError(f"{name}: the columns have different lengths ({listed})")
    return columns


def typed_cells(cells: Sequence[str | None]) -> list[Label | None]:
    """Return the texts of a column as whole numbers, numbers, booleans or texts: the first type that fits all of them.

    Blank cells are missing, and so is "nan" among numbers.

    Example:
        >>> typed_cells(["1", "", "3"]), typed_cells(["007", "12"]), typed_cells(["true", "False"])
        ([1, None, 3], ['007', '12'], [True, False])
    """
    stripped = [(cell or "").strip() for cell in cells]
    texts = {text for text in stripped if text}
    if all(WHOLE_NUMBER.fullmatch(text) for text in texts):
        return [int(text) if text else None for text in stripped]
    if all(text.casefold() in BOOLEANS for text in texts):
        return [BOOLEANS[text.casefold()] if text else None for text in stripped]
    if all(_is_number(text) for text in texts):
        numbers = [float(text or "nan") for text in stripped]
        return [None if number != number else number for number in numbers]
    return [text or None for text in stripped]


def table_in_memory(source: Any) -> Table | None:
    """Return a dictionary of columns, a list of rows, a DataFrame or a `datasets.Dataset` as a table.

    Returns:
        The table, or None if the source is nothing of that kind.

    Raises:
        ValueError: It has no rows, columns of different lengths, or two columns with the same name; or it is a
            dictionary of splits instead of a table.

    Example:
        >>> table_in_memory({"text": ["a", "b"], "label": [0, 1]}).count
        2
    """
    if hasattr(source, "column_names") and not hasattr(source, "__len__"):
        raise ValueError("a data set that is streamed has no length; pass one that is not")
    if hasattr(source, "column_names") and hasattr(source, "__len__"):
        return _from_datasets(source)
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return _from_pandas(source, "the table")
    if isinstance(source, Mapping):
        return _from_mapping(source)
    if isinstance(source, list) and source and all(isinstance(row, Mapping) for row in source):
        return Table("the rows", checked_columns(_columns_of(source), "the rows"))
    return None


def _from_mapping(source: Mapping[str, Any]) -> Table:
    splits = [key for key, value in source.items() if hasattr(value, "column_names") or hasattr(value, "iloc")]
    columns = {str(key): value for key, value in source.items()}
    if splits and not all(hasattr(value, "array") for value in source.values()):  # columns of pandas have `array`
        raise ValueError(f"a dictionary of tables (keys: {', '.join(map(str, source))}); pass one of them")
    for key, values in columns.items():
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise ValueError(f"the columns: {key!r} is a {type(values).__name__}, expected a list of values")
    return Table("the columns", checked_columns(columns, "the columns"))


def _from_pandas(frame: Any, name: str, folder: Path | None = None) -> Table:
    names = [str(column) for column in frame.columns]
    _check_no_duplicates(names, name)
    columns = {column: frame.iloc[:, position] for position, column in enumerate(names)}
    columns = {column: list(series) if series.dtype == object else series for column, series in columns.items()}
    return Table(name, checked_columns(columns, name), folder)


def _from_datasets(dataset: Any) -> Table:
    if isinstance(dataset.column_names, Mapping):
        raise ValueError(f"a dictionary of data sets (splits: {', '.join(dataset.column_names)}); pass one of them")
    columns: dict[str, Any] = {}
    for column in dataset.column_names:
        values = dataset[column]
        class_names = getattr(dataset.features[column], "names", None)
        if class_names is not None:
            values = [class_names[code] if code is not None and code >= 0 else None for code in values]
        columns[column] = values
    return Table("the data set", checked_columns(columns, "the data set"))


def _read_parquet(path: Path) -> Table:
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from None
    return _from_pandas(frame, path.name, path.parent)


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    encoding = BYTE_ORDER_MARKS.get(content[:2], "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 text; save the table as UTF-8") from None


def _separated_columns(text: str, path: Path) -> dict[str, list[str | None]]:
    rows = _separated_rows(text, path)
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    _check_no_duplicates(header, path.name)
    columns: dict[str, list[str | None]] = {name: [] for name in header}
    for line, cells in rows[1:]:
        if len(cells) > len(header):
            raise ValueError(f"{path}: line {line} has {len(cells)} values, the header has {len(header)}")
        padded = [*cells, *[None] * (len(header) - len(cells))]
        for name, cell in zip(header, padded, strict=True):
            columns[name].append(cell)
    return columns


def _separated_rows(text: str, path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that are not blank, each with its number and its values."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, path), strict=True)
    former_limit = csv.field_size_limit(sys.maxsize)  # of 128 kB, which a long text may exceed
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(former_limit)


def _delimiter(text: str, path: Path) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    header = text.partition("\n")[0]
    others = [delimiter for delimiter in (";", "\t") if delimiter in header]
    return others[0] if others and "," not in header else ","


def _json_columns(text: str, path: Path) -> dict[str, list[Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}: line {number}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is a {type(row).__name__}, expected an object with named values")
        rows.append(row)
    return _columns_of(rows)


def _columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _check_no_duplicates(names: Sequence[str], table: str) -> None:
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(f"{table}: two columns are called {name!r}; rename one of them")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text and not re.fullmatch(r"[+-]?0[0-9]+", text)
