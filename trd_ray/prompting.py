"""All prompts of a run, each with its role's format and room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trd_ray.chat import decode_text
from trd_ray.errors import DataError, describe
from trd_ray.refinement import (
    PrivilegedPrompt,
    PromptFormat,
    PromptTooLong,
    privileged_prompt,
    refine_prompt,
    require_reference,
    student_prompt,
    text_ids,
)
from trd_ray.templates import TemplateName, instructions
from trd_ray.types import IntArray, Problem, Prompt, RefinePrompt, Rollout, TeacherContext


@dataclass(frozen=True, kw_only=True)
class PromptBuilder:
    """Student prompts, refinement prompts and the contexts that the teacher scores under."""

    student_format: PromptFormat
    teacher_format: PromptFormat
    max_student_prompt: int
    """The generators' context less the output budget of a rollout, in tokens."""
    max_teacher_prompt: int
    """The teachers' context less the output budget of a refinement, in tokens."""
    max_scored: int
    """Longest teacher context and trajectory together, in tokens: what an engine of the teachers can read
    and still sample one token, which it always does."""
    max_trained: int
    """The student's: prompt and trajectory together, in tokens."""
    end_token_id: int
    """Ends an answer of the student."""
    privileged: bool
    """Refinement prompts hold the reference solution."""

    def student(self, problem: Problem) -> IntArray:
        """The prompt of a rollout [P]. Raises `DataError` if the problem is too long."""
        ids = student_prompt(problem, self.student_format, max_prompt_tokens=self.max_student_prompt)
        if isinstance(ids, PromptTooLong):
            raise DataError(
                describe(
                    "a problem is longer than the generators' context",
                    where=f"problem {problem.prompt_id!r}: {problem.problem[:60]!r}",
                    got=f"{ids.num_tokens} prompt tokens",
                    expected=f"at most {ids.max_prompt_tokens} "
                    "(generator.engine.max_model_len less generator.sampling.max_tokens)",
                    remedy="raise generator.engine.max_model_len, lower generator.sampling.max_tokens, "
                    "or remove the row",
                )
            )
        return ids

    def refine(self, rollout: Rollout) -> RefinePrompt | PromptTooLong:
        """The teacher's prompt for rewriting `rollout`."""
        return refine_prompt(
            rollout,
            self.teacher_format,
            privileged=self.privileged,
            max_prompt_tokens=self.max_teacher_prompt,
        )

    def echoes(self, text: str) -> bool:
        """A refinement that holds the instructions is a copy of its prompt and no rewrite."""
        template = TemplateName.REFINE_PRIVILEGED if self.privileged else TemplateName.REFINE
        return any(sentence in text for sentence in instructions(self.teacher_format.task_name, template))

    def reference(self, problem: Problem) -> IntArray:
        """The reference solution as the student would say it: its tokens [T] and the end token.

        Raises `DataError` if the problem has none.
        """
        solution = text_ids(self.student_format.tokenizer, require_reference(problem))
        return np.append(solution, np.int32(self.end_token_id)).astype(np.int32)

    def text(self, token_ids: IntArray) -> str:
        """Tokens decoded without special tokens, for graders and people."""
        return decode_text(self.student_format.tokenizer, token_ids)

    def answer_context(self, prompt: Prompt, *, num_tokens: int) -> IntArray | PromptTooLong:
        """What a teacher sees that answers by itself, with room for `num_tokens` [P']."""
        context = TeacherContext.PRIVILEGED if self.privileged else TeacherContext.PROMPT
        ids = self.score_context(prompt, None, context=context, num_tokens=num_tokens)
        room = self.max_scored - num_tokens
        if not isinstance(ids, PromptTooLong) and len(ids) > room:
            return PromptTooLong(num_tokens=len(ids), max_prompt_tokens=room)
        return ids

    def score_context(
        self, prompt: Prompt, refine: RefinePrompt | None, *, context: TeacherContext, num_tokens: int
    ) -> IntArray | PromptTooLong:
        """Tokens before a trajectory of `num_tokens` when the teacher scores it [P'].

        Under `prompt` they are exactly those that the student saw. `refine` is the prompt that the
        trajectory was made from; it is not None where the context is `refine`.
        """
        if context is TeacherContext.REFINE:
            assert refine is not None
            return refine.token_ids
        if context is TeacherContext.PROMPT:
            return prompt.token_ids
        room = self.max_scored - num_tokens
        shown = privileged_prompt(prompt.problem, self.teacher_format, max_prompt_tokens=room)
        return shown.token_ids if isinstance(shown, PrivilegedPrompt) else shown
