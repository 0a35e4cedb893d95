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
from typing import Self

from trd_ray.disk import writing

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
    whole, _ = split_torn(path.read_text(encoding="utf-8"))
    return [line for line in whole.split("\n") if line.strip()]


def split_torn(text: str) -> tuple[str, str]:
    """Split a file's text into its whole lines and the rest of a line that was never finished."""
    end = text.rfind("\n") + 1
    return text[:end], text[end:]


class JsonLinesWriter:
    """Appends records to one file. Each is flushed, so that a reader sees it at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # Without a buffer: what the disk refuses must not come back when the file is closed.
        self._file = path.open("ab", buffering=0)

    def write(self, record: Mapping[str, object]) -> None:
        """Raises `DiskError` if there is no room; then nothing of the line is there."""
        line = memoryview(dump_line(record).encode())
        with writing(self._path):
            size = self._path.stat().st_size
            try:
                while line:
                    line = line[self._file.write(line) or 0 :]
            except OSError:
                self._file.truncate(size)
                raise

    def close(self) -> None:
        """May be called more than once."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
