"""One trajectory from prompt to buffer: rollout -> refine -> score.

Each trajectory is a task of its own and is handed over as soon as a stage ends; the stage barrier
decides whether it waits for the others there.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass

import numpy as np

from trd_ray.config import MethodConfig, SamplingConfig
from trd_ray.interfaces import Buffer, Generator, Teacher
from trd_ray.prompting import PromptBuilder
from trd_ray.refinement import PromptTooLong, judge_trajectory
from trd_ray.seeds import derive_seed
from trd_ray.stage_clock import Stage
from trd_ray.step_stages import StepStages
from trd_ray.tasks.base import Task
from trd_ray.types import (
    Grade,
    IntArray,
    Outcome,
    Problem,
    Prompt,
    Refinement,
    RejectReason,
    Rollout,
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
    buffer: Buffer
    task: Task
    prompts: PromptBuilder
    method: MethodConfig
    rollout_sampling: SamplingConfig
    refine_sampling: SamplingConfig

    async def produce(self, prompt: Prompt, stages: StepStages) -> None:
        """Carry one prompt through all stages and put the trajectory into the buffer."""
        with stages.stage(Stage.ROLLOUT):
            rollout = await self._roll_out(prompt)
        await stages.wait()
        refinement: Refinement | PromptTooLong | None = None
        if self.method.trajectory is TrajectorySource.REFINED:
            with stages.stage(Stage.REFINE):
                refinement = await self._refine(rollout)
        await stages.wait()
        trajectory = self._assemble(rollout, refinement)
        if trajectory.outcome is Outcome.CONSUMED:
            with stages.stage(Stage.SCORE):
                target = await self.teacher.score(trajectory.teacher_context_ids, trajectory.token_ids)
            trajectory = dataclasses.replace(trajectory, target=target)
        await self.buffer.put(trajectory)

    async def _roll_out(self, prompt: Prompt) -> Rollout:
        completion = await self.generator.generate(prompt, self.rollout_sampling)
        grade = await self._grade(prompt.problem, completion.text)
        return Rollout(prompt=prompt, completion=completion, grade=grade)

    async def _refine(self, rollout: Rollout) -> Refinement | PromptTooLong:
        prompt = self.prompts.refine(rollout)
        if isinstance(prompt, PromptTooLong):
            return prompt
        seed = derive_seed(rollout.prompt.seed, "refine")
        answer = await self.teacher.generate(prompt.token_ids, self.refine_sampling, seed)
        completion = answer.completion
        grade = await self._grade(rollout.prompt.problem, completion.text)
        return Refinement(prompt=prompt, completion=completion, grade=grade)

    async def _grade(self, problem: Problem, text: str) -> Grade:
        # A grader of mathematics may compute for a second; the loop must go on meanwhile.
        return await asyncio.to_thread(self.task.grade, problem, text)

    def _assemble(self, rollout: Rollout, refinement: Refinement | PromptTooLong | None) -> Trajectory:
        """Judge, and find the context to score under; neither token list is touched."""
        made = refinement if isinstance(refinement, Refinement) else None
        reason = judge_trajectory(rollout, refinement=refinement).reason
        token_ids = _trajectory_ids(rollout, refinement)
        context_ids = rollout.prompt.token_ids
        if reason is RejectReason.NONE:
            found = self.prompts.score_context(
                rollout,
                None if made is None else made.prompt,
                context=self.method.teacher_context,
                num_tokens=len(token_ids),
            )
            if isinstance(found, PromptTooLong):
                reason = RejectReason.PROMPT_TOO_LONG
            else:
                context_ids = found
        shown = rollout if self.method.trajectory is TrajectorySource.ROLLOUT else made
        return Trajectory(
            prompt=rollout.prompt,
            rollout=rollout,
            refinement=made,
            source=self.method.trajectory,
            token_ids=token_ids,
            text="" if shown is None else shown.completion.text,
            grade=None if shown is None else shown.grade,
            policy_version_min=rollout.completion.policy_version_min,
            policy_version_max=rollout.completion.policy_version_max,
            teacher_context=self.method.teacher_context,
            teacher_context_ids=context_ids,
            outcome=Outcome.CONSUMED if reason is RejectReason.NONE else Outcome.REJECTED,
            reason=reason,
        )


def _trajectory_ids(rollout: Rollout, refinement: Refinement | PromptTooLong | None) -> IntArray:
    """The tokens to train on; none if the rewrite could not be asked for."""
    if isinstance(refinement, PromptTooLong):
        return np.zeros(0, dtype=np.int32)
    return rollout.completion.token_ids if refinement is None else refinement.completion.token_ids
