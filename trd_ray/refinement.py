"""Prompts of student and teacher, what is cut when they are too long, and which trajectories count.

Over length, text is cut in a fixed order: the tail of the rollout y_o first, and only when nothing of
it is left the tail of the reference y*. Each cut leaves a notice in the text. Problem, instructions and
chat template are never cut; a prompt for which they are too long is an outcome (`PromptTooLong`), not an
error. All lengths are token counts of the finished prompt, so a prompt that is returned always fits.

Rollouts enter a teacher's prompt as decoded text. The tokens that are trained on never pass through
here: they stay as the engine returned them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trd_ray.answers import completion_fault
from trd_ray.chat import decode_text, encode_chat
from trd_ray.errors import DataError, describe
from trd_ray.outcomes import RejectReason
from trd_ray.templates import TemplateName, render
from trd_ray.types import Completion, IntArray, Problem, RefinePrompt, Rollout, StopReason

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLLOUT_NOTICE = "[The rest of the initial solution is left out because it is too long.]"
REFERENCE_NOTICE = "[The rest of the reference solution is left out because it is too long.]"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFormat:
    """How the prompts of one role are made: task templates, tokenizer and its chat template."""

    task_name: str
    tokenizer: PreTrainedTokenizerBase
    enable_thinking: bool

    def encode(
        self,
        template: TemplateName,
        *,
        problem: Problem,
        reference: str | None = None,
        initial_solution: str | None = None,
    ) -> IntArray:
        """Render one template and encode it as a user turn -> [P]."""
        message = render(
            self.task_name,
            template,
            problem=problem.problem,
            reference=reference,
            initial_solution=initial_solution,
        )
        return encode_chat(self.tokenizer, message, enable_thinking=self.enable_thinking)


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptTooLong:
    """What cannot be cut does not fit. Leads to `RejectReason.PROMPT_TOO_LONG`."""

    num_tokens: int
    """Length of the prompt with all that may be cut left out."""
    max_prompt_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivilegedPrompt:
    """The teacher's prompt with the reference solution and without a rollout."""

    token_ids: IntArray
    """[P] chat template applied."""
    num_cut_reference_tokens: int
    """Tokens cut from the tail of y*."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """The longest beginning of a text with which a prompt fits."""

    token_ids: IntArray
    """[P] the whole prompt."""
    num_cut: int
    text: str
    """The text as it stands in the prompt, with the notice if anything was cut."""


def student_prompt(
    problem: Problem, prompt_format: PromptFormat, *, max_prompt_tokens: int
) -> IntArray | PromptTooLong:
    """The prompt of a rollout: the problem alone -> [P]."""
    ids = prompt_format.encode(TemplateName.STUDENT, problem=problem)
    if len(ids) > max_prompt_tokens:
        return PromptTooLong(num_tokens=len(ids), max_prompt_tokens=max_prompt_tokens)
    return ids


def privileged_prompt(
    problem: Problem, prompt_format: PromptFormat, *, max_prompt_tokens: int
) -> PrivilegedPrompt | PromptTooLong:
    """The teacher's prompt with problem and y*. Over length, the tail of y* is cut.

    Raises `DataError` if the problem has no reference solution.
    """
    reference = require_reference(problem)

    def encode(text: str) -> IntArray:
        return prompt_format.encode(TemplateName.PRIVILEGED, problem=problem, reference=text)

    reference_ids = text_ids(prompt_format.tokenizer, reference)
    cut = _cut_to_fit(
        reference, reference_ids, REFERENCE_NOTICE, encode,
        tokenizer=prompt_format.tokenizer, max_prompt_tokens=max_prompt_tokens,
    )  # fmt: skip
    if len(cut.token_ids) > max_prompt_tokens:
        return PromptTooLong(num_tokens=len(cut.token_ids), max_prompt_tokens=max_prompt_tokens)
    return PrivilegedPrompt(token_ids=cut.token_ids, num_cut_reference_tokens=cut.num_cut)


def refine_prompt(
    rollout: Rollout, prompt_format: PromptFormat, *, privileged: bool, max_prompt_tokens: int
) -> RefinePrompt | PromptTooLong:
    """The teacher's prompt for rewriting a rollout: problem, (y*,) y_o and instructions.

    Args:
        prompt_format: that of the teacher.
        privileged: show y* too.
        max_prompt_tokens: the engine's context less the output budget of the refinement.

    Raises:
        DataError: `privileged`, and the problem has no reference solution.
    """
    problem = rollout.prompt.problem
    tokenizer = prompt_format.tokenizer
    template = TemplateName.REFINE_PRIVILEGED if privileged else TemplateName.REFINE
    reference = require_reference(problem) if privileged else None
    rollout_ids = rollout.completion.token_ids
    initial_solution = decode_text(tokenizer, rollout_ids)

    def with_solution(text: str) -> IntArray:
        return prompt_format.encode(template, problem=problem, reference=reference, initial_solution=text)

    solution = _cut_to_fit(
        initial_solution, rollout_ids, ROLLOUT_NOTICE, with_solution,
        tokenizer=tokenizer, max_prompt_tokens=max_prompt_tokens,
    )  # fmt: skip
    ids, num_cut_reference = solution.token_ids, 0
    if len(ids) > max_prompt_tokens and reference is not None:

        def with_reference(text: str) -> IntArray:
            return prompt_format.encode(
                template, problem=problem, reference=text, initial_solution=solution.text
            )

        cut = _cut_to_fit(
            reference, text_ids(tokenizer, reference), REFERENCE_NOTICE, with_reference,
            tokenizer=tokenizer, max_prompt_tokens=max_prompt_tokens,
        )  # fmt: skip
        ids, num_cut_reference = cut.token_ids, cut.num_cut
    if len(ids) > max_prompt_tokens:
        return PromptTooLong(num_tokens=len(ids), max_prompt_tokens=max_prompt_tokens)
    return RefinePrompt(
        token_ids=ids,
        num_cut_rollout_tokens=solution.num_cut,
        num_cut_reference_tokens=num_cut_reference,
    )


def reject_rollout(completion: Completion, *, max_tokens: int, is_trajectory: bool) -> RejectReason:
    """Why a rollout is broken; `NONE` if it is not. An empty one only is if it is to be trained on.

    One that stopped by length is not: each of its tokens is the student's own.
    """
    if completion.stop_reason is StopReason.ABORT:
        return RejectReason.ABORTED
    if (fault := completion_fault(completion, max_tokens=max_tokens)) is not RejectReason.NONE:
        return fault
    # An answer of the end token alone is a choice of the student that the teacher can judge.
    if is_trajectory and len(completion.token_ids) == 0:
        return RejectReason.EMPTY
    return RejectReason.NONE


def reject_teacher_text(completion: Completion, *, max_tokens: int) -> RejectReason:
    """Why what the teacher wrote cannot be trained on; `NONE` if it can.

    What stopped by length cannot, since it teaches to end nowhere.
    """
    if completion.stop_reason is StopReason.ABORT:
        return RejectReason.ABORTED
    if (fault := completion_fault(completion, max_tokens=max_tokens)) is not RejectReason.NONE:
        return fault
    if completion.stop_reason is StopReason.LENGTH:
        return RejectReason.REFINE_TRUNCATED
    if len(completion.token_ids) == 0 or not completion.text.strip():
        return RejectReason.EMPTY
    return RejectReason.NONE


def _cut_to_fit(
    text: str,
    token_ids: IntArray,
    notice: str,
    encode: Callable[[str], IntArray],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
) -> _Cut:
    """Keep as many of `token_ids` [T], the tokens of `text`, as let the prompt fit.

    Where not even the notice alone fits, that is what is returned, so the caller must look at the
    length. Each candidate is measured as a finished prompt, because tokens may join at its borders.
    """
    whole = encode(text)
    if len(whole) <= max_prompt_tokens or not text:
        return _Cut(token_ids=whole, num_cut=0, text=text)
    kept_text, kept_prompt, kept = notice, encode(notice), 0
    if len(kept_prompt) <= max_prompt_tokens:
        too_many = len(token_ids)
        while too_many - kept > 1:
            middle = (kept + too_many) // 2
            beginning = (
                decode_text(tokenizer, token_ids[:middle]).rstrip("\N{REPLACEMENT CHARACTER}").rstrip()
            )
            candidate = f"{beginning}\n{notice}" if beginning else notice
            prompt = encode(candidate)
            if len(prompt) <= max_prompt_tokens:
                kept_text, kept_prompt, kept = candidate, prompt, middle
            else:
                too_many = middle
    return _Cut(token_ids=kept_prompt, num_cut=len(token_ids) - kept, text=kept_text)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> IntArray:
    """[T] tokens of a text in which special-token strings are ordinary text."""
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return np.asarray(ids, dtype=np.int32)


def require_reference(problem: Problem) -> str:
    """The reference solution of a problem. Raises `DataError` if it has none."""
    if problem.reference is None:
        raise DataError(
            describe(
                "a privileged prompt needs a reference solution",
                where=f"problem {problem.prompt_id!r}",
                got="a problem without one",
                expected="Problem.reference",
                remedy="load the problems with need_reference=True",
            )
        )
    return problem.reference
