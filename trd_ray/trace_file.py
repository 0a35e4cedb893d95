"""The file behind `trd_ray.trace`: a JSON array of events, appended to while the run goes on.

The format of chrome://tracing, which Perfetto reads too, lets the closing bracket be missing, so that a
run that was killed leaves a trace that opens. Each event is one line, and a line counts once its newline
is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trd_ray.disk import append_whole

_log = logging.getLogger(__name__)

_FLUSH_EVENTS = 512
_TAIL_BYTES = 1 << 16
_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False)
_END = b"\n]\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tail:
    """Where an existing file goes on."""

    num_bytes: int
    """Whole events; what comes after is cut off."""
    last_us: int


class TraceFile:
    """Appends events; holds few of them, and writes at most `max_bytes`.

    A disk that refuses them ends the trace, with a warning, and never the run that is traced.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Goes on behind the events of a file that is there; one that holds none is begun anew."""
        tail = _tail(path)
        self.last_us = tail.last_us if tail is not None else None
        """Latest instant of the events that were there; None if there were none."""
        self._num_bytes = tail.num_bytes if tail is not None else 0
        self._max_bytes = max_bytes
        self._lines: list[str] = []
        self._is_refused = False
        self._file = path.open("r+b" if tail is not None else "wb", buffering=0)
        self._file.truncate(self._num_bytes)
        self._file.seek(self._num_bytes)
        self._path = path

    @property
    def is_full(self) -> bool:
        return self._is_refused or self._num_bytes >= self._max_bytes

    def write(self, event: Mapping[str, object]) -> None:
        """Append one event; nothing once the file is full."""
        if self.is_full:
            return
        line = _ENCODER.encode(event)
        line = (",\n" if self._num_bytes else "[\n") + line
        self._num_bytes += len(line)
        self._lines.append(line)
        is_last = self._num_bytes >= self._max_bytes
        if is_last:
            _log.warning("%s holds %d bytes and is not continued", self._path, self._num_bytes)
        if is_last or len(self._lines) >= _FLUSH_EVENTS:
            self.flush()

    def flush(self) -> None:
        """Hand whole events to the operating system."""
        lines, self._lines = "".join(self._lines), []
        self._append(lines.encode("ascii"))

    def _append(self, data: bytes) -> None:
        if self._is_refused:
            return
        try:
            append_whole(self._file, data)
        except OSError as error:
            self._is_refused = True
            _log.warning("%s is not continued: %s", self._path, error)

    def close(self) -> None:
        """Close the array and the file. May be called more than once."""
        if self._file.closed:
            return
        self.flush()
        self._append(_END if self._num_bytes else b"[]\n")
        with contextlib.suppress(OSError):  # which some network disks keep for the end
            self._file.close()


def _tail(path: Path) -> _Tail | None:
    """Of a file with at least one whole event at its end, whether or not the array is closed."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL_BYTES)
        file.seek(start)
        tail = file.read()
    end = len(tail)
    while end > 0:
        begin = tail.rfind(b"\n", 0, end) + 1
        last_us = _end_of_event(tail[begin:end])
        if last_us is not None:
            return _Tail(num_bytes=start + begin + len(tail[begin:end].rstrip(b",")), last_us=last_us)
        end = begin - 1
    return None


def _end_of_event(line: bytes) -> int | None:
    """When a whole event ends, in microseconds; None if the line is none."""
    try:
        event = json.loads(line.rstrip(b","))
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("ts"), int):
        return None
    return int(event["ts"]) + int(event.get("dur", 0))
