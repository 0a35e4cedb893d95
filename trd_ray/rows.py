"""Reads problems from JSON and Parquet files, and names the row that is wrong.

Rows count from 1: lines of a JSON Lines file, objects of a JSON list, rows of a Parquet file.
"""

from __future__ import annotations

import codecs
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import IO

from trd_ray.config import ColumnsConfig
from trd_ray.errors import ConfigError, DataError, MissingDependencyError, describe
from trd_ray.tasks.registry import RowReader, RowText, load_row_reader
from trd_ray.types import Problem

_SAMPLE_PREFIX = "sample:"
_SAMPLES = {
    "gsm8k_train": "math/sample_gsm8k/train.jsonl",
    "gsm8k_test": "math/sample_gsm8k/test.jsonl",
}
"""Data that comes with the tasks, below `trd_ray/tasks/`."""

Row = Mapping[str, object]


def read_rows(source: str, columns: ColumnsConfig, *, task: str, need_reference: bool) -> tuple[Problem, ...]:
    """All problems of a file, in its order. At least one.

    Raises:
        DataError: the file is missing or unreadable, holds no row, or a row lacks a column, has a wrong
            type in it, is empty, or repeats an id.
        MissingDependencyError: the URL needs a package that is not installed.
    """
    reader = load_row_reader(task)
    problems = []
    rows_by_id: dict[str, int] = {}
    for number, row in _iterate_rows(source):
        problem = _make_problem(
            row, columns, where=f"{source}, row {number}", number=number,
            reader=reader, need_reference=need_reference,
        )  # fmt: skip
        first = rows_by_id.setdefault(problem.prompt_id, number)
        if first != number:
            raise _row_error(
                "two rows have the same id", where=f"{source}, row {number}", column=columns.id,
                got=f"{problem.prompt_id!r}, as in row {first}", expected="an id that no other row has",
                remedy="make the ids unique, or name a column that the file does not have in "
                "data.columns.id: then row numbers serve",
            )  # fmt: skip
        problems.append(problem)
    if not problems:
        raise DataError(
            describe(
                "the data file holds no problems",
                where=source,
                got="no rows",
                expected="at least one row",
                remedy="name another file in data.train or data.eval",
            )
        )
    return tuple(problems)


def _iterate_rows(source: str) -> Iterator[tuple[int, Row]]:
    """Each row with its number. Errors of the file are turned into `DataError`."""
    path = _sample_path(source) if source.startswith(_SAMPLE_PREFIX) else source
    read = _read_parquet if PurePosixPath(path).suffix in (".parquet", ".pq") else _read_json
    try:
        # Imported here: only file sources need it.
        import fsspec

        with fsspec.open(path, "rb", compression="infer") as file:
            yield from read(file, source)
    except ImportError as error:
        raise MissingDependencyError(
            describe(
                "a package for this kind of URL is not installed",
                where=source,
                got=str(error),
                expected="the fsspec file system of the URL's protocol",
                remedy="install the package that the message names, or copy the file to a local path",
            )
        ) from error
    except DataError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            describe(
                "the data file cannot be read",
                where=source,
                got=f"{type(error).__name__}: {error}",
                expected="a readable JSON (.jsonl, .jsonl.gz, .json) or Parquet (.parquet) file",
                remedy="check the path or URL in data.train and data.eval, and that the file is whole",
            )
        ) from error


def _sample_path(source: str) -> str:
    name = source.removeprefix(_SAMPLE_PREFIX)
    if name not in _SAMPLES:
        raise ConfigError(
            describe(
                "unknown sample data",
                where="data.train or data.eval",
                got=repr(source),
                expected=" or ".join(f"{_SAMPLE_PREFIX}{known}" for known in _SAMPLES),
                remedy="correct the name",
            )
        )
    return str(resources.files("trd_ray.tasks") / _SAMPLES[name])


def _read_json(file: IO[bytes], source: str) -> Iterator[tuple[int, Row]]:
    """JSON Lines, or one JSON list of objects, which is told by its first character."""
    first = next((line for line in file if line.strip()), b"")
    file.seek(0)
    # A byte order mark may stand before anything else.
    if first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _read_json_list(file, source)
        return
    for number, line in enumerate(file, start=1):
        if line.strip():
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield number, _object(_parse(text, source, f"row {number}"), source, number)


def _read_json_list(file: IO[bytes], source: str) -> Iterator[tuple[int, Row]]:
    rows = _parse(file.read().removeprefix(codecs.BOM_UTF8), source, "the list")
    assert isinstance(rows, list)  # it begins with a bracket, and is JSON
    for number, row in enumerate(rows, start=1):
        yield number, _object(row, source, number)


def _parse(text: bytes, source: str, part: str) -> object:
    try:
        parsed: object = json.loads(text.decode("utf-8"))
    except ValueError as error:  # both a decoding and a JSON error
        raise _row_error(
            "a row is not JSON", where=f"{source}, {part}", column="all",
            got=f"{error}", expected="one JSON object in UTF-8 on each line, or one JSON list of objects",
            remedy="correct what the message names",
        ) from error  # fmt: skip
    return parsed


def _object(row: object, source: str, number: int) -> Row:
    if not isinstance(row, dict):
        raise _row_error(
            "a row is no JSON object", where=f"{source}, row {number}", column="all",
            got=type(row).__name__, expected='an object such as {"problem": "...", "answer": "..."}',
            remedy="write each problem as one JSON object",
        )  # fmt: skip
    return row


def _read_parquet(file: IO[bytes], source: str) -> Iterator[tuple[int, Row]]:
    from pyarrow import parquet

    number = 0
    for batch in parquet.ParquetFile(file).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _make_problem(
    row: Row, columns: ColumnsConfig, *, where: str, number: int, reader: RowReader, need_reference: bool
) -> Problem:
    problem = _text(row, columns.problem, key="problem", where=where)
    answer = _scalar(row, columns.answer, key="answer", where=where)
    reference = None
    if need_reference or row.get(columns.solution) is not None:
        reference = _text(row, columns.solution, key="solution", where=where)
    read = reader(RowText(answer=answer, reference=reference))
    if row.get(columns.id) is None:
        prompt_id = f"row-{number}"
    else:
        prompt_id = _scalar(row, columns.id, key="id", where=where)
    return Problem(prompt_id=prompt_id, problem=problem, answer=read.answer, reference=read.reference)


def _text(row: Row, column: str, *, key: str, where: str) -> str:
    """The text of a column, which must have some."""
    value = row.get(column)
    if value is None:
        raise _row_error(
            "a row lacks a column", where=where, column=column,
            got=f"columns {sorted(row)}" if column not in row else "null",
            expected=f"text in column {column!r}",
            remedy=f"correct the row, or name the column that holds it: data.columns.{key}=...",
        )  # fmt: skip
    if not isinstance(value, str):
        raise _row_error(
            "a column has the wrong type", where=where, column=column,
            got=f"{type(value).__name__} {value!r:.80}", expected="text",
            remedy=f"write it as text, or name another column: data.columns.{key}=...",
        )  # fmt: skip
    if not value.strip():
        raise _row_error(
            "a column is empty", where=where, column=column,
            got=repr(value[:80]), expected="text that is not blank",
            remedy="fill it in, or remove the row",
        )  # fmt: skip
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _row_error(
            "a column holds text that is not valid Unicode", where=where, column=column,
            got=f"{error.reason} at character {error.start}", expected="text without lone surrogates",
            remedy="correct the escape sequence (\\ud800 .. \\udfff) in the row",
        ) from error  # fmt: skip
    return value


def _scalar(row: Row, column: str, *, key: str, where: str) -> str:
    """Text, or a number written as text."""
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return _text(row, column, key=key, where=where)


def _row_error(what: str, *, where: str, column: str, got: str, expected: str, remedy: str) -> DataError:
    return DataError(
        describe(what, where=f"{where}, column {column!r}", got=got, expected=expected, remedy=remedy)
    )
