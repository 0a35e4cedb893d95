"""The trajectories that the report shows, and the differences between y_o and y_r.

Differences are computed on the texts, for the eye only. The canonical tokens stay in the Parquet
files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from pathlib import Path

from trd_ray.outcomes import Outcome
from trd_ray.trajectory_log import TrajectoryRow, read_trajectories
from trd_ray.types import TrajectorySource

MAX_TRAJECTORIES = 400
MAX_STEPS = 80
"""Steps that trajectories are taken from: each costs reading a whole file."""
MAX_CHARS = 6000
"""Characters shown of one text; 400 pairs of texts stay under 5 MB."""

_PIECE = re.compile(r"\d+|[^\W\d]+|\s+|.")


_REWRITTEN = (TrajectorySource.REFINED, TrajectorySource.SPLICED)


class Kind(StrEnum):
    """What became of a rollout. Values are the words on the page."""

    WRONG_TO_RIGHT = "wrong to right"
    RIGHT_TO_WRONG = "right to wrong"
    BOTH_WRONG = "both wrong"
    BOTH_RIGHT = "both right"
    RIGHT = "right"
    """What is trained on is no rewrite of a rollout, and right."""
    WRONG = "wrong"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Piece:
    text: str
    changed: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a text."""

    number: int
    """From 1."""
    pieces: tuple[Piece, ...]
    first_wrong: bool = False
    missing: bool = False
    """The first wrong step is one that the text does not have."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """One trajectory as shown."""

    kind: Kind
    row: TrajectoryRow
    lines: tuple[tuple[Line | None, Line | None], ...]
    """y_o beside y_r, aligned. The second is None throughout if there is no y_r."""
    refined: bool
    num_cut_chars: int
    """Characters at the ends of the texts that are not shown."""


def kind_of(row: TrajectoryRow) -> Kind:
    if row.outcome is Outcome.REJECTED:
        return Kind.REJECTED
    if row.trajectory_source not in _REWRITTEN:
        return Kind.RIGHT if row.trajectory_correct else Kind.WRONG
    if row.trajectory_correct:
        return Kind.BOTH_RIGHT if row.rollout_correct else Kind.WRONG_TO_RIGHT
    return Kind.RIGHT_TO_WRONG if row.rollout_correct else Kind.BOTH_WRONG


def sample_cards(folder: Path, *, steps: Sequence[int]) -> tuple[Card, ...]:
    """At most `MAX_TRAJECTORIES` cards, evenly over `steps`, in order of step.

    Within a step kinds take turns, so that a rare kind is seen too.
    """
    chosen = spread(steps, MAX_STEPS)
    if not chosen:
        return ()
    quota = max(1, MAX_TRAJECTORIES // len(chosen))
    cards: list[Card] = []
    for step in chosen:
        cards += [make_card(row) for row in _take_turns(read_trajectories(folder, steps=[step]), quota)]
    return tuple(cards)


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of `values`, evenly spaced, first and last among them."""
    if len(values) <= most:
        return list(values)
    if most == 1:
        return [values[-1]]
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _take_turns(rows: Iterable[TrajectoryRow], quota: int) -> list[TrajectoryRow]:
    by_kind: dict[Kind, list[TrajectoryRow]] = {kind: [] for kind in Kind}
    for row in rows:
        by_kind[kind_of(row)].append(row)
    turns = zip_longest(*by_kind.values())
    return [row for turn in turns for row in turn if row is not None][:quota]


def make_card(row: TrajectoryRow) -> Card:
    """Align and compare the texts of one row."""
    refined = row.trajectory_source in _REWRITTEN
    # A method without rollouts shows what it trains on in their place.
    alone = row.rollout_correct is None
    before, cut_before = _shorten(row.trajectory_text if alone else row.rollout_text)
    first_wrong = row.trajectory_first_wrong_step if alone else row.rollout_first_wrong_step
    after, cut_after = _shorten(row.trajectory_text) if refined else ("", 0)
    left = _Marks(before, first_wrong, is_whole=not cut_before)
    right = _Marks(after, row.trajectory_first_wrong_step if refined else None, is_whole=not cut_after)
    return Card(
        kind=kind_of(row),
        row=row,
        lines=_align(left, right, compare=refined and row.trajectory_correct is not None),
        refined=refined,
        num_cut_chars=cut_before + cut_after,
    )


def _shorten(text: str) -> tuple[str, int]:
    # Graders count steps in the text without surrounding white space, so lines are counted there too.
    text = text.strip()
    return text[:MAX_CHARS], max(0, len(text) - MAX_CHARS)


class _Marks:
    """The lines of one text and which of them is the first wrong step."""

    def __init__(self, text: str, first_wrong_step: int | None, *, is_whole: bool) -> None:
        self.texts = text.split("\n") if text else []
        self._first_wrong = first_wrong_step
        self._missing = first_wrong_step is not None and first_wrong_step >= len(self.texts) and is_whole

    def line(self, index: int, pieces: tuple[Piece, ...]) -> Line:
        return Line(number=index + 1, pieces=pieces, first_wrong=index == self._first_wrong)

    def missing_line(self) -> Line | None:
        """A line for a first wrong step after the end of the text."""
        if not self._missing:
            return None
        return Line(number=len(self.texts) + 1, pieces=(), first_wrong=True, missing=True)


def _align(left: _Marks, right: _Marks, *, compare: bool) -> tuple[tuple[Line | None, Line | None], ...]:
    """Pair equal lines; between them, pair changed lines in order and mark what changed in each."""
    rows: list[tuple[Line | None, Line | None]] = []
    matcher = difflib.SequenceMatcher(None, left.texts, right.texts, autojunk=False)
    for _, i1, i2, j1, j2 in matcher.get_opcodes():
        for i, j in zip_longest(range(i1, i2), range(j1, j2)):
            old = left.texts[i] if i is not None else None
            new = right.texts[j] if j is not None else None
            old_pieces, new_pieces = diff_pieces(old, new) if compare else (_plain(old), _plain(new))
            rows.append(
                (
                    None if i is None else left.line(i, old_pieces),
                    None if j is None else right.line(j, new_pieces),
                )
            )
    ends = (left.missing_line(), right.missing_line())
    return (*rows, ends) if any(ends) else tuple(rows)


def _plain(text: str | None) -> tuple[Piece, ...]:
    return (Piece(text, False),) if text else ()


def diff_pieces(old: str | None, new: str | None) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Cut two lines into pieces that are common and pieces that changed. None is no line at all."""
    before, after = _PIECE.findall(old or ""), _PIECE.findall(new or "")
    if old is None or new is None:
        return tuple(Piece(p, True) for p in before), tuple(Piece(p, True) for p in after)
    # Above this the popularity heuristic saves minutes and costs only some sharpness.
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=len(before) > 400)
    left, right = [], []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        changed = tag != "equal"
        if i2 > i1:
            left.append(Piece("".join(before[i1:i2]), changed))
        if j2 > j1:
            right.append(Piece("".join(after[j1:j2]), changed))
    return tuple(left), tuple(right)
