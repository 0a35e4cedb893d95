"""One trajectory from prompt to buffer.

Each trajectory is a task of its own and is handed over as soon as a stage ends; the stage barrier decides
whether it waits for the others there. The stages are the same for every method: tokens of the student
(rollout), tokens of the teacher (refine), the teacher's distributions (score). A method passes through those
that it does without.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass

from trd_ray.buffer import TrajectoryBuffer
from trd_ray.choices import ScoreMethod
from trd_ray.config import MethodConfig, SamplingConfig
from trd_ray.interfaces import Generator, Teacher
from trd_ray.locate import FailureLocator
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.prompting import PromptBuilder
from trd_ray.refinement import PromptTooLong, reject_rollout, reject_teacher_text
from trd_ray.refiner import Refiner
from trd_ray.seeds import derive_seed
from trd_ray.speculative import Speculation, speculate
from trd_ray.stage_clock import Stage
from trd_ray.step_stages import StepStages
from trd_ray.targets import is_sound, with_known_ids
from trd_ray.tasks.base import Task
from trd_ray.trajectories import make, never_made, of_rollout, rejected
from trd_ray.types import (
    DeferredTarget,
    Grade,
    IntArray,
    Problem,
    Prompt,
    Rollout,
    StopReason,
    TeacherContext,
    TopKTargets,
    Trajectory,
    TrajectorySource,
)


@dataclass(frozen=True, kw_only=True)
class Producer:
    """Makes trajectories.

    Consumes: prompts. Produces: trajectories in the buffer, rejected ones included. Waits for:
    generator, teacher, barrier, room in the buffer. Unblocked by: their answers.
    """

    generator: Generator
    teacher: Teacher
    buffer: TrajectoryBuffer
    task: Task
    prompts: PromptBuilder
    method: MethodConfig
    score: ScoreMethod
    rollout_sampling: SamplingConfig
    refine_sampling: SamplingConfig
    vocab_size: int
    """Tokens of the shared tokenizer: no other can be learnt from."""
    locator: FailureLocator | None = None
    """None unless the method splices."""

    async def produce(self, prompt: Prompt, stages: StepStages) -> None:
        """Carry one prompt through all stages and put the trajectory into the buffer."""
        rollout = speculation = None
        if self.method.makes_rollout:
            async with stages.stage(Stage.ROLLOUT):
                rollout = await self._roll_out(prompt)
        elif self.method.trajectory is TrajectorySource.SPECULATIVE:
            async with stages.stage(Stage.ROLLOUT):
                speculation = await self._speculate(prompt)
        await stages.wait()
        trajectory = await self._complete(prompt, rollout, speculation, stages)
        await stages.wait()
        if (trajectory.token_ids >= self.vocab_size).any():
            trajectory = rejected(trajectory, RejectReason.UNKNOWN_TOKEN)
        if self.method.scores and trajectory.outcome is Outcome.CONSUMED and trajectory.target is None:
            trajectory = await self._score(trajectory, stages)
        if trajectory.target is not None and not is_sound(trajectory.target):
            trajectory = rejected(trajectory, RejectReason.NON_FINITE)
        if isinstance(trajectory.target, TopKTargets):
            known = with_known_ids(trajectory.target, vocab_size=self.vocab_size)
            trajectory = dataclasses.replace(trajectory, target=known)
        await self.buffer.put(trajectory)

    async def _complete(
        self,
        prompt: Prompt,
        rollout: Rollout | None,
        speculation: Speculation | PromptTooLong | None,
        stages: StepStages,
    ) -> Trajectory:
        """Whatever of the trajectory is left to be made when the student is done."""
        match self.method.trajectory:
            case TrajectorySource.ROLLOUT:
                assert rollout is not None  # the method makes one
                return self._of_rollout(rollout)
            case TrajectorySource.SPECULATIVE:
                assert speculation is not None  # likewise
                return await self._of_speculation(prompt, speculation)
            case TrajectorySource.TEACHER:
                async with stages.stage(Stage.REFINE):
                    return await self._of_teacher(prompt)
            case TrajectorySource.REFERENCE:
                return await self._of_reference(prompt)
        assert rollout is not None  # refined and spliced
        async with stages.stage(Stage.REFINE):
            return await self._refiner().refine(rollout)

    def _refiner(self) -> Refiner:
        return Refiner(
            generator=self.generator,
            teacher=self.teacher,
            prompts=self.prompts,
            method=self.method,
            sampling=self.refine_sampling,
            max_rollout_tokens=self.rollout_sampling.max_tokens,
            locator=self.locator,
            grade=self._grade,
            fused=self.score is ScoreMethod.FUSED,
        )

    async def _score(self, trajectory: Trajectory, stages: StepStages) -> Trajectory:
        context_ids, token_ids = trajectory.teacher_context_ids, trajectory.token_ids
        if self.score is ScoreMethod.LEARNER:
            return dataclasses.replace(trajectory, target=DeferredTarget(context_ids=context_ids))
        if self.score.by_engine and len(context_ids) + len(token_ids) > self.prompts.max_scored:
            return rejected(trajectory, RejectReason.PROMPT_TOO_LONG)
        async with stages.stage(Stage.SCORE):
            target = await self.teacher.score(context_ids, token_ids)
        return dataclasses.replace(trajectory, target=target)

    async def _roll_out(self, prompt: Prompt) -> Rollout:
        completion = await self.generator.generate(prompt, self.rollout_sampling)
        grade = await self._grade(prompt.problem, completion.text)
        return Rollout(prompt=prompt, completion=completion, grade=grade)

    def _of_rollout(self, rollout: Rollout) -> Trajectory:
        return of_rollout(
            rollout,
            context=self._scored_context,
            context_ids=self._context_ids(rollout.prompt, num_tokens=len(rollout.completion.token_ids)),
            reason=reject_rollout(
                rollout.completion, max_tokens=self.rollout_sampling.max_tokens, is_trajectory=True
            ),
        )

    async def _speculate(self, prompt: Prompt) -> Speculation | PromptTooLong:
        context = self.prompts.answer_context(prompt, num_tokens=self.rollout_sampling.max_tokens)
        if isinstance(context, PromptTooLong):
            return context
        return await speculate(
            prompt,
            context,
            generator=self.generator,
            teacher=self.teacher,
            options=self.method.speculative,
            sampling=self.rollout_sampling,
            seed=derive_seed(prompt.seed, "verify"),
        )

    async def _of_speculation(self, prompt: Prompt, made: Speculation | PromptTooLong) -> Trajectory:
        context = self._scored_context
        if isinstance(made, PromptTooLong):
            return never_made(
                prompt,
                source=TrajectorySource.SPECULATIVE,
                context=context,
                reason=RejectReason.PROMPT_TOO_LONG,
            )
        reason = RejectReason.NONE
        if made.stop_reason is StopReason.ABORT:
            reason = RejectReason.ABORTED
        elif len(made.token_ids) == 0:
            reason = RejectReason.EMPTY
        text = self.prompts.text(made.token_ids)
        return make(
            prompt,
            source=TrajectorySource.SPECULATIVE,
            token_ids=made.token_ids,
            text=text,
            grade=await self._grade(prompt.problem, text),
            context=context,
            context_ids=self._context_ids(prompt, num_tokens=len(made.token_ids)),
            reason=reason,
            num_kept=made.num_kept,
            versions=(made.policy_version_min, made.policy_version_max),
        )

    async def _of_teacher(self, prompt: Prompt) -> Trajectory:
        """The teacher's own answer, in the context that a method without a rollout shows it."""
        context_ids = self.prompts.answer_context(prompt, num_tokens=self.refine_sampling.max_tokens)
        source, context = TrajectorySource.TEACHER, self._scored_context
        if isinstance(context_ids, PromptTooLong):
            return never_made(prompt, source=source, context=context, reason=RejectReason.PROMPT_TOO_LONG)
        fused = self.score is ScoreMethod.FUSED and self.method.scores
        answer = await self.teacher.generate(
            context_ids,
            self.refine_sampling,
            derive_seed(prompt.seed, "answer"),
            top_k=self.method.num_targets if fused else None,
        )
        completion = answer.completion
        answered_under = context is self.method.refused_context
        return make(
            prompt,
            source=source,
            token_ids=completion.token_ids,
            text=completion.text,
            grade=await self._grade(prompt.problem, completion.text),
            context=context,
            context_ids=context_ids
            if answered_under
            else self._context_ids(prompt, num_tokens=len(completion.token_ids)),
            reason=reject_teacher_text(completion, max_tokens=self.refine_sampling.max_tokens),
            target=answer.targets,
        )

    async def _of_reference(self, prompt: Prompt) -> Trajectory:
        token_ids = self.prompts.reference(prompt.problem)
        text = self.prompts.text(token_ids)
        too_long = len(prompt.token_ids) + len(token_ids) > self.prompts.max_trained
        return make(
            prompt,
            source=TrajectorySource.REFERENCE,
            token_ids=token_ids,
            text=text,
            grade=await self._grade(prompt.problem, text),
            context=self._scored_context,
            context_ids=self._context_ids(prompt, num_tokens=len(token_ids)),
            reason=RejectReason.PROMPT_TOO_LONG if too_long else RejectReason.NONE,
        )

    def _context_ids(self, prompt: Prompt, *, num_tokens: int) -> IntArray | PromptTooLong:
        return self.prompts.score_context(prompt, None, context=self._scored_context, num_tokens=num_tokens)

    @property
    def _scored_context(self) -> TeacherContext:
        """That of the method; one that is not scored may name a context that it has no prompt for."""
        if self.method.teacher_context is TeacherContext.REFINE and not self.method.refines:
            return self.method.refused_context
        return self.method.teacher_context

    async def _grade(self, problem: Problem, text: str) -> Grade:
        # A grader of mathematics may compute for a second; the loop must go on meanwhile.
        return await asyncio.to_thread(self.task.grade, problem, text)
