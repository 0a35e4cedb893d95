"""All prompts of a run, each with its role's format and room."""

from __future__ import annotations

from dataclasses import dataclass

from trd_ray.errors import DataError, describe
from trd_ray.refinement import (
    PrivilegedPrompt,
    PromptFormat,
    PromptTooLong,
    privileged_prompt,
    refine_prompt,
    student_prompt,
)
from trd_ray.types import IntArray, Problem, RefinePrompt, Rollout, TeacherContext


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
    """The teachers' context: teacher context and trajectory together, in tokens."""
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

    def score_context(
        self, rollout: Rollout, refine: RefinePrompt | None, *, context: TeacherContext, num_tokens: int
    ) -> IntArray | PromptTooLong:
        """Tokens before a trajectory of `num_tokens` when the teacher scores it [P'].

        Under `prompt` they are exactly those that the student saw. `refine` is the prompt that the
        trajectory was made from; it is not None where the context is `refine`.
        """
        if context is TeacherContext.REFINE:
            assert refine is not None
            return refine.token_ids
        if context is TeacherContext.PROMPT:
            return rollout.prompt.token_ids
        room = self.max_scored - num_tokens
        prompt = privileged_prompt(rollout.prompt.problem, self.teacher_format, max_prompt_tokens=room)
        return prompt.token_ids if isinstance(prompt, PrivilegedPrompt) else prompt
