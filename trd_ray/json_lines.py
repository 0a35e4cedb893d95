"""JSON Lines files that survive a killed writer and parse in every strict reader.

A line counts once its newline is there. So a reader that comes while a line is written, or after
the writer was killed in the middle of one, sees whole lines only.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trd_ray.disk import append_whole, writing
from trd_ray.errors import DataError, describe

_log = logging.getLogger(__name__)


def dump_line(record: Mapping[str, object]) -> str:
    """One strict JSON object with its newline.

    NaN and infinities, which JSON does not know, become null: the row of a step whose loss
    diverged is the one that is needed most, so it is written and not refused. A warning names
    the fields. Values inside lists and objects must be finite; `ValueError` otherwise.
    """
    lost = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    if lost:
        _log.warning("not finite, written as null: %s", ", ".join(lost))
    clean = {name: None if name in lost else value for name, value in record.items()}
    # Without letters of more than one byte, so that a line that was cut off is still text.
    return json.dumps(clean, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file without their newlines, blank ones left out; [] if there is no file."""
    if not path.exists():
        return []
    whole, _ = read_torn(path)
    return [line for line in whole.split("\n") if line.strip()]


def read_torn(path: Path) -> tuple[str, str]:
    """A file's whole lines, and the rest of a line that was never finished.

    Raises:
        DataError: a whole line is no text.
    """
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    try:
        return data[:end].decode(), data[end:].decode(errors="replace")
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from error


def read_record(line: str, *, file: str) -> dict[str, Any]:
    """One line's object. Raises `DataError` if it is none.

    Args:
        file: named in the error.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged(file, f"{line[:80]!r}: {error}") from error
    if not isinstance(record, dict):
        raise _damaged(file, repr(line[:80]))
    return record


def _damaged(file: Path | str, got: str) -> DataError:
    return DataError(
        describe(
            "a line cannot be read", where=str(file), got=got, expected="one JSON object, in UTF-8",
            remedy="take the line out, or restore the file that the run wrote",
        )
    )  # fmt: skip


class JsonLinesWriter:
    """Appends records to one file. Each is flushed, so that a reader sees it at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, object]) -> None:
        """Raises `DiskError` if there is no room; then nothing of the line is there."""
        line = dump_line(record).encode()
        with writing(self._path):
            append_whole(self._file, line)

    def close(self) -> None:
        """May be called more than once."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
