"""Problems: chains of + and - over 3 to 5 terms whose running totals stay in 0..99.

A problem is written as `12+7-5`, and its one canonical solution as

    12+7=19
    19-5=14
    #14

From any running total there are exactly 99 next moves (adding 1..99-total or taking 1..total), so
drawing each move uniformly gives every operand and every step its chance.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from itertools import islice
from random import Random

from trd_ray.errors import DataError, describe
from trd_ray.types import Problem

MIN_TERMS = 3
MAX_TERMS = 5
MAX_TOTAL = 99
"""Largest running total; the smallest is 0."""

_HELD_OUT_ONE_IN = 8
_PROBLEM = re.compile(r"[0-9]{1,9}(?:[+-][0-9]{1,9})+")
_TERM = re.compile(r"[+-]?[0-9]+")


class Split(StrEnum):
    """Which side of the train / held-out border a problem is on."""

    TRAIN = "train"
    HELD_OUT = "held_out"


def split_of(problem: str) -> Split:
    """The split of a problem text, from a hash of the text alone.

    So no seed and no number of problems can move a problem across the border. One problem in 8 is
    held out.
    """
    digest = hashlib.sha256(problem.encode()).digest()
    held_out = int.from_bytes(digest[:4], "big") % _HELD_OUT_ONE_IN == 0
    return Split.HELD_OUT if held_out else Split.TRAIN


def draw_terms(rng: Random) -> tuple[int, ...]:
    """Draw the signed terms of one problem of either split; the first is positive."""
    total = rng.randint(1, MAX_TOTAL)
    terms = [total]
    for _ in range(rng.randint(MIN_TERMS, MAX_TERMS) - 1):
        move = rng.randint(1, MAX_TOTAL)
        term = move if move <= MAX_TOTAL - total else MAX_TOTAL - total - move
        terms.append(term)
        total += term
    return tuple(terms)


def format_problem(terms: Sequence[int]) -> str:
    """Write signed terms as a problem text: `(12, 7, -5)` is `12+7-5`."""
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def parse_problem(problem: str) -> tuple[int, ...]:
    """The signed terms of a problem text. Raises `DataError` if it is not a chain of terms."""
    if _PROBLEM.fullmatch(problem) is None:
        raise DataError(
            describe(
                "An arithmetic problem cannot be read.",
                where="trd_ray.tasks.arithmetic",
                got=repr(problem),
                expected="at least two non-negative whole numbers joined by + or -, such as 12+7-5",
                remedy="use problems of generate_problems, or another task for this data",
            )
        )
    return tuple(int(term) for term in _TERM.findall(problem))


def format_step(total: int, term: int, result: int) -> str:
    """One step line, `12+7=19`."""
    return f"{total}{term:+d}={result}"


def format_answer(total: int) -> str:
    """The last line of a solution, `#14`."""
    return f"#{total}"


def solve(terms: Sequence[int]) -> tuple[str, ...]:
    """The lines of the canonical solution: one step a term after the first, then the answer."""
    total = terms[0]
    lines = []
    for term in terms[1:]:
        lines.append(format_step(total, term, total + term))
        total += term
    return (*lines, format_answer(total))


def make_problem(terms: Sequence[int]) -> Problem:
    """The data row of a problem. Its id is its text, hence unique and the same in every run."""
    text = format_problem(terms)
    return Problem(
        prompt_id=f"arithmetic/{text}",
        problem=text,
        answer=str(sum(terms)),
        reference="\n".join(solve(terms)),
    )


def generate_problems(*, seed: int, split: Split, num: int | None = None) -> Iterator[Problem]:
    """Problems of one split, in an order fixed by `seed`, none twice.

    Endless if `num` is None; the problems already given are remembered, about 100 bytes each.
    """
    return islice(_distinct_problems(seed, split), num)


def _distinct_problems(seed: int, split: Split) -> Iterator[Problem]:
    rng = Random(f"arithmetic/{seed}")
    seen: set[str] = set()
    while True:
        terms = draw_terms(rng)
        text = format_problem(terms)
        if text not in seen and split_of(text) is split:
            seen.add(text)
            yield make_problem(terms)
