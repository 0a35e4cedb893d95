"""What the testbed models are trained on: prompts in the task's templates, and solutions to them.

Three kinds of solution text are made here: the canonical one; one with slips (the student's way to
be wrong: well-formed, with later steps building on the slip); and initial solutions spoiled in many
ways and at very different rates (what the teacher must not copy).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from trd_ray.tasks.arithmetic.problems import (
    MAX_TOTAL,
    Split,
    draw_terms,
    format_answer,
    format_problem,
    format_step,
    solve,
    split_of,
)
from trd_ray.templates import TemplateName, render

TASK_NAME = "arithmetic"

Terms = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One training pair, as text."""

    user: str
    """The user message, before the chat template."""
    response: str
    """What the assistant answers, without the end token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialSolution:
    """A solution text that was given to one problem."""

    terms: Terms
    text: str


def draw_train_terms(rng: Random) -> Terms:
    """Draw a problem that is not held out."""
    while split_of(format_problem(terms := draw_terms(rng))) is not Split.TRAIN:
        pass
    return terms


def make_user_message(template: TemplateName, terms: Terms, *, initial_solution: str = "") -> str:
    """Render one of the task's templates; the reference is the canonical solution."""
    return render(
        TASK_NAME,
        template,
        problem=format_problem(terms),
        reference="\n".join(solve(terms)),
        initial_solution=initial_solution,
    )


def _slips(total: int, term: int) -> list[int]:
    """Errors of the result that a hurried person makes in `total + term`."""
    carries = (total % 10 + abs(term) % 10 >= 10) if term > 0 else (total % 10 < abs(term) % 10)
    slips = [1, -1, 10, -10]
    if carries:
        # A dropped carry or borrow, weighted up: it is the likeliest slip where it can happen.
        slips += [-10 if term > 0 else 10] * 4
    slips.append(-2 * term)  # the sign misread
    return slips


def solution_with_slips(rng: Random, terms: Terms, *, rate: float) -> tuple[str, ...]:
    """A solution in which each step is a slip with probability `rate`, later steps building on it.

    A slip after which a running total would leave 0..99 is not made, so that every line stays of
    the form that right solutions have.
    """
    lines = []
    total = terms[0]
    for index, term in enumerate(terms[1:], start=1):
        result = total + term
        if rng.random() < rate:
            slipped = result + rng.choice(_slips(total, term))
            later = slipped
            possible = 0 <= slipped <= MAX_TOTAL
            for next_term in terms[index + 1 :]:
                later += next_term
                possible = possible and 0 <= later <= MAX_TOTAL
            result = slipped if possible else result
        lines.append(format_step(total, term, result))
        total = result
    return (*lines, format_answer(total))


def _wild_totals(rng: Random, terms: Terms) -> str:
    """Well-formed steps with random results that later steps build on, or do not."""
    builds = rng.random() < 0.7
    rate = rng.choice((0.2, 0.5, 1.0))
    total = right = terms[0]
    lines = []
    for term in terms[1:]:
        right += term
        result = rng.randint(0, MAX_TOTAL) if rng.random() < rate else max(total + term, 0)
        lines.append(format_step(total, term, result))
        total = result if builds else right
    return "\n".join((*lines, format_answer(total)))


def _wrong_characters(rng: Random, text: str, alphabet: str) -> str:
    """Replace, drop and insert characters, each at a rate drawn for this text."""
    replace, drop, insert = (rng.choice((0.0, 0.02, 0.1, 0.3, 0.7)) for _ in range(3))
    out = []
    for character in text:
        if rng.random() >= drop:
            out.append(rng.choice(alphabet) if rng.random() < replace else character)
        if rng.random() < insert * 0.5:
            out.append(rng.choice(alphabet))
    return "".join(out)


def _wrong_digits(rng: Random, text: str) -> str:
    rate = rng.choice((0.03, 0.1, 0.3, 0.6, 1.0))
    return "".join(rng.choice(string.digits) if c.isdigit() and rng.random() < rate else c for c in text)


def _wrong_lines(rng: Random, text: str) -> str:
    """Drop, repeat, swap or add whole lines."""
    lines = text.split("\n")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines)) if lines else 0
        match rng.randrange(4):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(at, lines[at])
            case 2:
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case _:
                lines.insert(at, rng.choice(solve(draw_terms(rng))))
    return "\n".join(lines)


_STEP_CHARACTERS = string.digits + "+-=#\n"


def _garbage(rng: Random) -> str:
    alphabet = rng.choice((_STEP_CHARACTERS, string.printable[:95] + "\n", string.digits, "1\n=#"))
    return "".join(rng.choices(alphabet, k=rng.randint(1, 64)))


def spoil(rng: Random, terms: Terms) -> str:
    """An initial solution of a problem: rarely right, else wrong in one or several ways."""
    text = "\n".join(solve(terms))
    kind = rng.random()
    if kind < 0.06:
        return text
    if kind < 0.10:
        return _garbage(rng)
    if kind < 0.13:
        return ""
    if kind < 0.35:
        text = "\n".join(solution_with_slips(rng, terms, rate=rng.uniform(0.1, 1.0)))
    elif kind < 0.60:
        text = _wild_totals(rng, terms)
    elif kind < 0.72:
        text = _wild_totals(rng, draw_terms(rng)) if rng.random() < 0.5 else "\n".join(solve(draw_terms(rng)))
    else:
        text = _wrong_digits(rng, text)
    if rng.random() < 0.2:
        text = _wrong_lines(rng, text)
    if rng.random() < 0.2:
        text = _wrong_characters(rng, text, _STEP_CHARACTERS)
    if rng.random() < 0.15:
        text = text[: rng.randrange(len(text) + 1)]
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """How often each prompt is drawn, and the initial solutions that rewriting is trained on."""

    student: float
    privileged: float
    refine: float
    refine_privileged: float
    student_slip_rate: float = 0.0
    """Slips per step in the responses to `student` prompts; all other responses are right."""
    rollouts: Sequence[InitialSolution] = ()
    """Real rollouts of training problems."""
    rollout_share: float = 0.0
    """Share of the initial solutions taken from `rollouts`; the rest is spoiled solutions."""

    def draw(self, rng: Random) -> Example:
        """Draw one training pair; never a held-out problem."""
        template = rng.choices(
            tuple(TemplateName), weights=(self.student, self.privileged, self.refine, self.refine_privileged)
        )[0]
        terms = draw_train_terms(rng)
        initial_solution = ""
        if template in (TemplateName.REFINE, TemplateName.REFINE_PRIVILEGED):
            if self.rollouts and rng.random() < self.rollout_share:
                rollout = rng.choice(self.rollouts)
                terms, initial_solution = rollout.terms, rollout.text
            else:
                initial_solution = spoil(rng, terms)
        rate = self.student_slip_rate if template is TemplateName.STUDENT else 0.0
        return Example(
            user=make_user_message(template, terms, initial_solution=initial_solution),
            response="\n".join(solution_with_slips(rng, terms, rate=rate)),
        )


Draw = Callable[[Random], Example]
