"""Where a rollout stops being good: the locators of spliced trajectories.

Each answers one question with a token index, so that the kept tokens are the rollout's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trd_ray.chat import decode_text
from trd_ray.choices import Locator
from trd_ray.config import SpliceConfig
from trd_ray.errors import ConfigError, describe
from trd_ray.interfaces import Teacher
from trd_ray.tasks.base import Task
from trd_ray.types import IntArray, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a locator may look at beside the rollout."""

    context_ids: IntArray
    """[P'] the tokens before the rollout when the teacher judges it."""
    rewrite_ids: IntArray | None
    """[T] the teacher's rewrite of the whole rollout, where the locator needs it."""


class FailureLocator(Protocol):
    """Finds where a rollout goes wrong."""

    @property
    def needs_rewrite(self) -> bool:
        """It looks at a rewrite of the whole rollout."""
        ...

    @property
    def asks_teacher(self) -> bool:
        """It has the teacher read the rollout, for which context and rollout must fit together."""
        ...

    async def first_bad_token(self, rollout: Rollout, evidence: Evidence) -> int | None:
        """Index of the first token that is not kept, 0 to the rollout's length; None if all are good."""
        ...


@dataclass(frozen=True, kw_only=True)
class GraderLocator:
    """The first token of the first wrong step, as the task's grader knows it."""

    tokenizer: PreTrainedTokenizerBase
    needs_rewrite: bool = False
    asks_teacher: bool = False

    async def first_bad_token(self, rollout: Rollout, evidence: Evidence) -> int | None:
        wrong_at = rollout.grade.first_wrong_char
        if rollout.grade.correct:
            return None
        assert wrong_at is not None  # the task knows steps, or the run would not have been put together
        return num_tokens_before(self.tokenizer, rollout.completion.token_ids, wrong_at)


@dataclass(frozen=True, kw_only=True)
class TeacherProbabilityLocator:
    """The first token whose teacher probability is below a threshold."""

    teacher: Teacher
    threshold: float
    needs_rewrite: bool = False
    asks_teacher: bool = True

    async def first_bad_token(self, rollout: Rollout, evidence: Evidence) -> int | None:
        token_ids = rollout.completion.token_ids
        if len(token_ids) == 0:
            return 0
        logprobs = await self.teacher.token_logprobs(evidence.context_ids, token_ids)
        # So put, a logprob that is no number is not taken for a good one.
        bad = np.flatnonzero(~(logprobs >= math.log(self.threshold)))
        return int(bad[0]) if len(bad) else None


@dataclass(frozen=True, kw_only=True)
class FirstDifferenceLocator:
    """The first token at which a rewrite of the whole rollout differs from it."""

    needs_rewrite: bool = True
    asks_teacher: bool = False

    async def first_bad_token(self, rollout: Rollout, evidence: Evidence) -> int | None:
        assert evidence.rewrite_ids is not None  # asked for by `needs_rewrite`
        shared = num_shared(rollout.completion.token_ids, evidence.rewrite_ids)
        whole = shared == len(rollout.completion.token_ids) == len(evidence.rewrite_ids)
        return None if whole else shared


def make_locator(
    options: SpliceConfig, *, task: Task, teacher: Teacher, tokenizer: PreTrainedTokenizerBase
) -> FailureLocator:
    """The locator that the options name.

    Raises `ConfigError` if it is the grader of a task that knows no steps.
    """
    if options.locator is Locator.TEACHER_PROBABILITY:
        return TeacherProbabilityLocator(teacher=teacher, threshold=options.threshold)
    if options.locator is Locator.FIRST_DIFFERENCE:
        return FirstDifferenceLocator()
    require_steps(options, task=task)
    return GraderLocator(tokenizer=tokenizer)


def require_steps(options: SpliceConfig, *, task: Task) -> None:
    """Raise `ConfigError` if the locator is the grader of a task that knows no steps."""
    if options.locator is Locator.GRADER and not task.knows_steps:
        raise ConfigError(
            describe(
                "the task's grader does not know where a solution goes wrong",
                where="method.splice.locator",
                got=f"grader, with data.task={task.name}",
                expected="teacher_probability or first_difference for this task",
                remedy="set method.splice.locator=teacher_probability",
            )
        )


def num_shared(first: IntArray, second: IntArray) -> int:
    """Tokens that two sequences have in common at their beginning."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def num_tokens_before(tokenizer: PreTrainedTokenizerBase, token_ids: IntArray, char: int) -> int:
    """The most tokens of `token_ids` [T] whose text ends at or before character `char` of the whole text.

    Tokens at that border which have no text of their own, such as an end token, are left out.
    """
    whole = decode_text(tokenizer, token_ids)

    def fits(num: int) -> bool:
        return len(decode_text(tokenizer, token_ids[:num])) <= char

    most, too_many = 0, len(token_ids) + 1
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    # A character may take several tokens: a border within it decodes to a replacement character.
    while most and not whole.startswith(decode_text(tokenizer, token_ids[:most])):
        most -= 1
    text = decode_text(tokenizer, token_ids[:most])
    while most and decode_text(tokenizer, token_ids[: most - 1]) == text:
        most -= 1
    return most
