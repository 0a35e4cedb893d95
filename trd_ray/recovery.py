"""A learner that survives the loss of its ranks: started anew, brought back to its step from the last
checkpoint and the log of the buffer, without a generator or a teacher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from trd_ray.config import LearnerConfig, MethodConfig
from trd_ray.errors import LearnerLostError, RunFailedError, brief, describe
from trd_ray.interfaces import Learner, WeightSync
from trd_ray.outcomes import Outcome
from trd_ray.run_folder import RunFolder
from trd_ray.step_batch import step_batch
from trd_ray.types import LearnerStep, SyncReport, TrainingBatch, Trajectory

log = logging.getLogger(__name__)

T = TypeVar("T")


class StepLog(Protocol):
    """Where the trajectories of past steps are read again."""

    def steps(self) -> tuple[int, ...]:
        """Steps that have a segment."""
        ...

    def read_step(self, learner_step: int) -> tuple[Trajectory, ...]:
        """Those that ended in a step, in the order in which they were learnt from."""
        ...


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a learner is brought back with."""

    folder: RunFolder
    """Its checkpoints."""
    steps: StepLog | None
    """None if the run keeps no log of what it trains on."""
    method: MethodConfig
    learner: LearnerConfig


class RecoveringLearner:
    """Implements `Learner` and `WeightSync` over a group of ranks that may be lost.

    Everything that needs the ranks takes its turn here, so that a replacement of a generator never gets
    weights in the middle of a step, and that one recovery is made for all that wait.
    """

    def __init__(
        self,
        learner: Learner,
        weight_sync: WeightSync,
        *,
        restart: Callable[[], Awaitable[None]],
        past: Past,
        max_restarts: int,
        down: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """
        Args:
            restart: starts the ranks anew, with the weights of step 0, and forgets whom they pushed to.
            down: entered while the ranks are started anew, for whoever watches the run.
        """
        self._learner = learner
        self._weight_sync = weight_sync
        self._restart = restart
        self._past = past
        self._max_restarts = max_restarts
        self._down = down
        self._turn = asyncio.Lock()
        self._version = 0
        # Set while the ranks are not what they should be: nothing may use or save them then.
        self._lost: LearnerLostError | None = None
        self.num_restarts = 0

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        async with self._turn:
            step = await self._surviving(lambda: self._learner.learn(batch))
            self._version = step.policy_version
        return step

    async def save(self, folder: Path) -> None:
        async with self._turn:
            await self._surviving(lambda: self._learner.save(folder))

    async def load(self, folder: Path) -> int:
        async with self._turn:
            self._version = await self._learner.load(folder)
        return self._version

    async def push(self, policy_version: int) -> SyncReport:
        async with self._turn:
            return await self._surviving(lambda: self._weight_sync.push(policy_version))

    async def catch_up(self) -> None:
        """Push the learner's present weights to whoever lacks them."""
        async with self._turn:
            await self._surviving(lambda: self._weight_sync.push(self._version))

    async def _surviving(self, work: Callable[[], Awaitable[T]]) -> T:
        while True:
            if self._lost is not None:
                await self._recover(self._lost)
            try:
                return await work()
            except LearnerLostError as error:
                self._lost = error

    async def _recover(self, error: LearnerLostError) -> None:
        """Bring the ranks back to `_version`; tries again if they are lost while that is done."""
        while True:
            if self.num_restarts >= self._max_restarts:
                raise RunFailedError(self._too_many(error)) from error
            # Before anything is started, which takes minutes.
            await asyncio.to_thread(self._require_past)
            self.num_restarts += 1
            log.warning(
                "the learner is started anew (%d of %d): %s",
                self.num_restarts,
                self._max_restarts,
                brief(error),
            )
            try:
                with self._down():
                    await self._restart()
                    await self._replay()
            except LearnerLostError as again:
                self._lost = error = again
            else:
                self._lost = None
                return

    def _require_past(self) -> None:
        """Raise `RunFailedError` naming the first step since the last checkpoint that is not in the log."""
        checkpoint = self._past.folder.latest_checkpoint()
        reached = 0 if checkpoint is None else checkpoint.learner_step
        if reached >= self._version:
            return
        logged = () if self._past.steps is None else self._past.steps.steps()
        for step in range(reached + 1, self._version + 1):
            if step not in logged:
                raise RunFailedError(
                    describe(
                        "the learner died, and what it learnt since its last checkpoint is not in a log",
                        where=f"step {step}",
                        got="no segment of the buffer's log",
                        expected="pipeline.log_targets=true since the run began",
                        remedy="--resume, which goes back to the last checkpoint",
                    )
                )

    async def _replay(self) -> None:
        checkpoint = self._past.folder.latest_checkpoint()
        reached = 0
        if checkpoint is not None:
            reached = await self._learner.load(checkpoint.path)
        for step in range(reached + 1, self._version + 1):
            logged = await asyncio.to_thread(self._logged, step)
            batch = step_batch(
                [t for t in logged if t.outcome is Outcome.CONSUMED],
                learner_step=step,
                method=self._past.method,
                learner=self._past.learner,
            )
            await self._learner.learn(batch)
        log.warning(
            "the learner is at step %d again, %d of them replayed", self._version, self._version - reached
        )

    def _logged(self, step: int) -> tuple[Trajectory, ...]:
        assert self._past.steps is not None  # as `_require_past` found
        return self._past.steps.read_step(step)

    def _too_many(self, error: LearnerLostError) -> str:
        return describe(
            "the learner failed once more than is put up with",
            where=f"after step {self._version}",
            got=f"{self.num_restarts} restarts in this run, then: {error}",
            expected=f"at most {self._max_restarts} (faults.max_restarts)",
            remedy="see the ranks' logs; then --resume, which starts counting anew",
        )
