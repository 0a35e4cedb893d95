"""What the pipeline needs of each role. The pipeline knows these Protocols and nothing else.

Two wirings implement them: Ray handles (`actors/handles.py`) and one process (`trd_ray/local/`).
Every call is one sample or one whole optimizer step, so that a finished sample can be handed over
without waiting for the others. A call that breaks its contract raises; an expected outcome (a
truncated answer) is a value in the record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from trd_ray.config import SamplingConfig
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


class Generator(Protocol):
    """The group of student generators."""

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        """One answer from the current student; `prompt.token_ids` may end with a begun answer."""
        ...

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """Student logprobs [T] of `token_ids` [T] after `prompt_ids` [P]."""
        ...


class Teacher(Protocol):
    """The group of teachers."""

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        """One text sampled from the teacher after `prompt_ids` [P]. Its policy versions are 0.

        `top_k` asks for the targets of the generated tokens too, at no further forward pass
        (0: only their own logprobs).
        """
        ...

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden | TopKTargets:
        """The teacher along `token_ids` [T] after `context_ids` [P], as `teacher.score` says."""
        ...

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """Teacher logprobs [T] of `token_ids` [T] after `context_ids` [P]."""
        ...

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        """Judge a draft [T] after `context_ids` [P]: how much of it lies in the teacher's top k, and
        the teacher's own sample (at `temperature`) in place of the first token that does not."""
        ...


class Learner(Protocol):
    """The group of learner ranks."""

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        """One optimizer step."""
        ...

    async def save(self, folder: Path) -> None:
        """Write all that is needed to go on, and the student in Hugging Face layout in `folder/hf`."""
        ...

    async def load(self, folder: Path) -> int:
        """Restore what `save` wrote; returns the policy version (completed optimizer steps)."""
        ...


class WeightSync(Protocol):
    """Carries the learner's weights into every generator."""

    async def push(self, policy_version: int) -> SyncReport:
        """Returns once every generator serves `policy_version`. Raises `WeightSyncError`."""
        ...


class DeviceTurns(Protocol):
    """Says whose turn it is on devices that roles share."""

    async def begin(self, stage: Stage) -> None:
        """Returns once the role that works in `stage` may do so; no other role may be asked until then.

        Raises `ActorTimeoutError` with the actor that did not give up, or take, its devices.
        """
        ...
