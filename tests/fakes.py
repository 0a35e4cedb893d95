"""Scripted roles for tests of the pipeline's logic. Never the default of a command.

The fake student answers with the prompt's seed-independent text; the fake teacher corrects it. The
fakes record what they were asked, so that a test can look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trd_ray.config import SamplingConfig
from trd_ray.types import (
    Completion,
    DraftVerdict,
    FloatArray,
    Grade,
    IntArray,
    LearnerStep,
    Problem,
    Prompt,
    StopReason,
    SyncReport,
    TeacherCompletion,
    TeacherHidden,
    TopKTargets,
    TrainingBatch,
)

HIDDEN_WIDTH = 3


def completion(
    text: str, *, version: int = 0, stop: StopReason = StopReason.STOP, logprob: float = -0.5
) -> Completion:
    ids = np.asarray([ord(c) for c in text], dtype=np.int32)
    return Completion(
        token_ids=ids,
        logprobs=np.full(len(ids), logprob, dtype=np.float32),
        text=text,
        stop_reason=stop,
        policy_version_min=version,
        policy_version_max=version,
    )


@dataclass
class FakeGenerator:
    """Answers with `answer(prompt)`; `gate`, if given, holds every answer until it is set."""

    answer: Callable[[Prompt], Completion] = lambda prompt: completion("wrong")
    gate: asyncio.Event | None = None
    asked: list[Prompt] = field(default_factory=list)
    policy_version: int = 0
    student_logprob: float = -0.5

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        return np.full(len(token_ids), self.student_logprob, dtype=np.float32)

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        self.asked.append(prompt)
        if self.gate is not None:
            await self.gate.wait()
        made = self.answer(prompt)
        return Completion(
            token_ids=made.token_ids,
            logprobs=made.logprobs,
            text=made.text,
            stop_reason=made.stop_reason,
            policy_version_min=self.policy_version,
            policy_version_max=self.policy_version,
        )


@dataclass
class FakeTeacher:
    """Writes `rewrite()`; scores with ones; finds every token as likely as `token_logprob` says."""

    rewrite: Callable[[], Completion] = lambda: completion("right")
    refined: list[IntArray] = field(default_factory=list)
    scored: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    asked_top_k: list[int | None] = field(default_factory=list)
    token_logprob: Callable[[int], float] = lambda index: -0.1

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        self.refined.append(prompt_ids)
        self.asked_top_k.append(top_k)
        made = self.rewrite()
        num = len(made.token_ids)
        targets = None
        if top_k is not None:
            targets = TopKTargets(
                topk_ids=np.zeros((num, top_k), dtype=np.int32),
                topk_logprobs=np.full((num, top_k), -1.0, dtype=np.float32),
                token_logprobs=made.logprobs,
            )
        return TeacherCompletion(completion=made, targets=targets)

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden:
        self.scored.append((context_ids, token_ids))
        return TeacherHidden(hidden=np.ones((len(token_ids), HIDDEN_WIDTH), dtype=np.float32))

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        return np.asarray([self.token_logprob(i) for i in range(len(token_ids))], dtype=np.float32)

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        return DraftVerdict(num_accepted=len(draft_ids), replacement=None)


@dataclass
class FakeLearner:
    """Counts steps; its loss is the number of loss tokens."""

    batches: list[TrainingBatch] = field(default_factory=list)
    policy_version: int = 0
    during_learn: Callable[[], None] = lambda: None

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        self.batches.append(batch)
        self.during_learn()
        self.policy_version += 1
        return LearnerStep(
            learner_step=batch.learner_step,
            policy_version=self.policy_version,
            loss=float(batch.num_loss_tokens),
            grad_norm=1.0,
            learning_rate=0.1,
            num_loss_tokens=batch.num_loss_tokens,
            student_logprob_mean=None,
            learn_s=0.0,
        )

    async def save(self, folder: Path) -> None:
        (folder / "fake.txt").write_text(str(self.policy_version))

    async def load(self, folder: Path) -> int:
        self.policy_version = int((folder / "fake.txt").read_text())
        return self.policy_version


@dataclass
class FakeWeightSync:
    """Gives the generator the version that was pushed."""

    generator: FakeGenerator
    pushed: list[int] = field(default_factory=list)

    async def push(self, policy_version: int) -> SyncReport:
        self.pushed.append(policy_version)
        self.generator.policy_version = policy_version
        return SyncReport(
            policy_version=policy_version, num_parameters=1, num_bytes=4, checksum="0" * 64, sync_s=0.0
        )


class FakeTask:
    """Right is the text `right`."""

    name = "arithmetic"
    knows_steps = True

    def grade(self, problem: Problem, text: str) -> Grade:
        return Grade(correct=text == "right", answer=text)


@dataclass
class RecordingObserver:
    stages: list[tuple[str, int, int]] = field(default_factory=list)
    steps: list[object] = field(default_factory=list)
    evals: list[object] = field(default_factory=list)

    def on_stage(self, stage: str, done: int, total: int) -> None:
        self.stages.append((stage, done, total))

    def on_step(self, metrics: object) -> None:
        self.steps.append(metrics)

    def on_eval(self, report: object) -> None:
        self.evals.append(report)
