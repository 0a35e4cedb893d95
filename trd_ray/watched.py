"""Roles that report to a `RoleActivity` what they do, around those of either wiring.

The learner is one actor, however many ranks it has. Generators and teachers are
watched here only if each is one object in this process; over Ray, whoever chooses the actor reports.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from trd_ray.activity import RoleActivity
from trd_ray.activity_records import CHECKPOINT, LEARNER, VERIFY
from trd_ray.assembly import Roles
from trd_ray.config import SamplingConfig
from trd_ray.interfaces import Generator, Learner, Teacher, WeightSync
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage
from trd_ray.types import (
    Completion,
    DraftVerdict,
    FloatArray,
    IntArray,
    LearnerStep,
    Prompt,
    SyncReport,
    TeacherCompletion,
    TeacherHidden,
    TopKTargets,
    TrainingBatch,
)

GENERATOR, TEACHER = "generator-0", "teacher-0"
"""In one process."""


def watch_roles(roles: Roles, activity: RoleActivity, *, in_process: bool, has_teacher: bool) -> Roles:
    """The same roles, watched. Adds their actors to `activity`.

    Args:
        in_process: generator and teacher are one object each, and are watched too.
        has_teacher: a teacher is asked in this run.
    """
    activity.add(LEARNER, Role.LEARNER)
    watched = replace(
        roles,
        learner=WatchedLearner(inner=roles.learner, activity=activity),
        weight_sync=WatchedWeightSync(inner=roles.weight_sync, activity=activity),
    )
    if not in_process:
        return watched
    activity.add(GENERATOR, Role.GENERATOR)
    if has_teacher:
        activity.add(TEACHER, Role.TEACHER)
        watched = replace(watched, teacher=WatchedTeacher(inner=roles.teacher, activity=activity))
    return replace(watched, generator=WatchedGenerator(inner=roles.generator, activity=activity))


@dataclass(frozen=True, kw_only=True)
class WatchedGenerator:
    """Implements `Generator`."""

    inner: Generator
    activity: RoleActivity

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        with self.activity.serving(GENERATOR, Stage.ROLLOUT):
            return await self.inner.generate(prompt, sampling)

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        with self.activity.serving(GENERATOR, Stage.SCORE):
            return await self.inner.token_logprobs(prompt_ids, token_ids)


@dataclass(frozen=True, kw_only=True)
class WatchedTeacher:
    """Implements `Teacher`."""

    inner: Teacher
    activity: RoleActivity

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        with self.activity.serving(TEACHER, Stage.REFINE):
            return await self.inner.generate(prompt_ids, sampling, seed, top_k=top_k)

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden | TopKTargets:
        with self.activity.serving(TEACHER, Stage.SCORE):
            return await self.inner.score(context_ids, token_ids)

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        with self.activity.serving(TEACHER, Stage.SCORE):
            return await self.inner.token_logprobs(context_ids, token_ids)

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        with self.activity.serving(TEACHER, VERIFY):
            return await self.inner.verify(
                context_ids, draft_ids, top_k=top_k, temperature=temperature, seed=seed
            )


@dataclass(frozen=True, kw_only=True)
class WatchedLearner:
    """Implements `Learner`."""

    inner: Learner
    activity: RoleActivity

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        with self.activity.serving(LEARNER, Stage.LEARN):
            return await self.inner.learn(batch)

    async def save(self, folder: Path) -> None:
        with self.activity.serving(LEARNER, CHECKPOINT):
            await self.inner.save(folder)
        self.activity.mark("checkpoint", folder.name.partition(".")[0])

    async def load(self, folder: Path) -> int:
        with self.activity.serving(LEARNER, CHECKPOINT):
            return await self.inner.load(folder)


@dataclass(frozen=True, kw_only=True)
class WatchedWeightSync:
    """Implements `WeightSync`. The learner and all generators take part in a push."""

    inner: WeightSync
    activity: RoleActivity

    async def push(self, policy_version: int) -> SyncReport:
        with (
            self.activity.serving(LEARNER, Stage.SYNC),
            self.activity.serving_all(Role.GENERATOR, Stage.SYNC),
        ):
            report = await self.inner.push(policy_version)
        self.activity.mark("push", f"of version {policy_version}")
        return report
