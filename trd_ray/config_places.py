"""Where a setting was written: file, line, column, and the line with a caret under what is meant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

_MOST_CHARS = 100
"""Of a line that is quoted."""
_INDENT = " " * 12
"""Under the first line of `where:`, see `trd_ray.errors.describe`."""
COMMAND_LINE = "command line"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spot:
    """A piece of one line."""

    text: str
    """The whole line."""
    start: int
    """First character of the piece, from 0."""
    width: int
    line: int = 0
    """From 1; 0 on the command line."""

    def quoted(self) -> str:
        """Two lines: the text, and a caret under the piece."""
        first = max(0, self.start - _MOST_CHARS // 2) if len(self.text) > _MOST_CHARS else 0
        shown = self.text[first : first + _MOST_CHARS].replace("\t", " ")
        carets = "^" * max(1, min(self.width, len(shown) - (self.start - first)))
        number = str(self.line) if self.line else ""
        under = f"{' ' * (self.start - first)}{carets}"
        return f"{_INDENT}{number} | {shown}\n{_INDENT}{' ' * len(number)} | {under}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where one setting stands."""

    source: str
    """A file, or `command line`."""
    key: Spot
    value: Spot
    extended_by: tuple[str, ...] = ()
    """`file:line` of each file that leads to this one by `extends`, the nearest first."""

    @classmethod
    def in_file(
        cls, file: Path, key: yaml.Node, value: yaml.Node, *, extended_by: tuple[str, ...] = ()
    ) -> Place:
        """Of a key and its value in a file that was composed from its text."""
        return cls(source=str(file), key=node_spot(key), value=node_spot(value), extended_by=extended_by)

    @classmethod
    def in_override(cls, override: str) -> Place:
        """Of `key=value` on the command line."""
        key, _, value = override.partition("=")
        return cls(
            source=COMMAND_LINE,
            key=Spot(text=override, start=0, width=len(key)),
            value=Spot(text=override, start=len(key) + 1, width=len(value)),
        )

    def brief(self, spot: Spot) -> str:
        """`file:line:column`."""
        return f"{self.source}:{spot.line}:{spot.start + 1}" if spot.line else self.source

    def words(self, spot: Spot) -> str:
        """`file:line:column`, and by whom the file was extended."""
        return ", extended by ".join((self.brief(spot), *self.extended_by))

    def quoted(self, setting: str, spot: Spot) -> str:
        """For `where:` of a message: the setting, where it stands, and the line."""
        return f"{setting} ({self.words(spot)})\n{spot.quoted()}"


def node_spot(node: yaml.Node) -> Spot:
    """What a node covers of its first line."""
    start, end = node.start_mark, node.end_mark
    text = _line_at(start)
    on_one_line = end.line == start.line
    width = (end.column if on_one_line else len(text)) - start.column
    return Spot(text=text, start=start.column, width=width, line=start.line + 1)


def error_spot(error: yaml.MarkedYAMLError) -> Spot | None:
    """Where a YAML file is broken; None if the error does not say."""
    mark = error.problem_mark or error.context_mark
    return None if mark is None else Spot(text=_line_at(mark), start=mark.column, width=1, line=mark.line + 1)


def _line_at(mark: yaml.Mark) -> str:
    # A mark of a text (not of a stream) holds all of it, closed by a NUL.
    lines = (mark.buffer or "").rstrip("\0").splitlines()
    return lines[mark.line] if mark.line < len(lines) else ""
