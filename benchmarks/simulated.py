"""The driver of a run with roles that only wait.

Everything that the driver does is real: pipeline, production loop, collector, ledger, buffer, prompts of the
testbed's tokenizer, grader, engine pools with their balancers and heartbeats, `RayGenerators`, `RayTeachers`,
`call` with its time limit. In place of Ray actors stand objects of this process that look like their handles:
`handle.generate.remote(...)` gives a reference whose future a timer completes. So Ray's own transport
(serialisation, sockets, its threads) is not in any figure.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np

from actors.engine import SamplingOptions
from actors.handles import RayGenerators, RayTeachers
from actors.members import NamedActor
from actors.pool import EnginePool
from actors.pool_limits import PoolLimits
from trd_ray.activity import RoleActivity
from trd_ray.assembly import Roles, RunInputs, read_inputs
from trd_ray.config import TrdConfig
from trd_ray.data import FiniteStream
from trd_ray.interfaces import Learner
from trd_ray.run_state import RunState
from trd_ray.tasks.arithmetic import Split, generate_problems
from trd_ray.types import (
    Completion,
    IntArray,
    LearnerStep,
    StopReason,
    SyncReport,
    TeacherCompletion,
    TeacherHidden,
    TrainingBatch,
    Trajectory,
)

HIDDEN_WIDTH = 128
"""Of the testbed's teacher."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One request as an engine sees it."""

    stage: str
    """`rollout`, `refine` or `score`."""
    num_prompt: int
    num_output: int
    """Tokens to be generated; 0 for a score."""


class Server(Protocol):
    """What an engine's time goes to."""

    def serve(self, work: Work, done: Callable[[], None]) -> None:
        """Call `done` on the event loop when the request is served."""
        ...


class FixedServer:
    """Each request takes its stage's seconds, times a factor in [1 - jitter, 1 + jitter]; 0 is at once."""

    def __init__(
        self, seconds: dict[str, float], *, jitter: float, seed: int, at_once: int | None = None
    ) -> None:
        """
        Args:
            at_once: requests that are served at the same time, others wait; None for no bound.
        """
        self._seconds = seconds
        self._jitter = jitter
        self._random = random.Random(seed)
        self._num_free = at_once
        self._waiting: deque[tuple[Work, Callable[[], None]]] = deque()

    def serve(self, work: Work, done: Callable[[], None]) -> None:
        if self._num_free is None:
            self._start(work, done)
        elif self._num_free == 0:
            self._waiting.append((work, done))
        else:
            self._num_free -= 1
            self._start(work, lambda: self._end(done))

    def _end(self, done: Callable[[], None]) -> None:
        if self._waiting:
            work, next_done = self._waiting.popleft()
            self._start(work, lambda: self._end(next_done))
        else:
            assert self._num_free is not None  # only then is it called
            self._num_free += 1
        done()

    def _start(self, work: Work, done: Callable[[], None]) -> None:
        seconds = self._seconds.get(work.stage, 0.0)
        loop = asyncio.get_running_loop()
        if seconds:
            loop.call_later(seconds * self._random.uniform(1 - self._jitter, 1 + self._jitter), done)
        else:
            loop.call_soon(done)


class Answers:
    """What the engines answer: tokens of the right length, in the testbed's vocabulary."""

    def __init__(self, inputs: RunInputs, *, num_tokens: int | Callable[[], int]) -> None:
        self._num_tokens = num_tokens if callable(num_tokens) else lambda: num_tokens
        line = "12+34=46\n46-20=26\n"
        self._ids = np.asarray(inputs.tokenizer.encode(line, add_special_tokens=False) * 2048, dtype=np.int32)
        self._text = line * 2048
        self._chars_per_token = len(line) / (len(self._ids) / 2048)
        self._hidden = np.ones((len(self._ids), HIDDEN_WIDTH), dtype=np.float32)

    def rollout_length(self) -> int:
        return self._num_tokens()

    def refinement_length(self, num_prompt: int) -> int:
        """Tokens of a refinement whose prompt has `num_prompt`."""
        return self._num_tokens()

    def completion(self, num: int, *, versions: tuple[int, int]) -> Completion:
        # New arrays, as every answer over Ray has; hidden states stay in shared memory there.
        return Completion(
            token_ids=self._ids[:num].copy(),
            logprobs=np.full(num, -0.5, dtype=np.float32),
            text=self._text[: int(num * self._chars_per_token)],
            stop_reason=StopReason.STOP,
            policy_version_min=versions[0],
            policy_version_max=versions[1],
        )

    def hidden(self, num: int) -> TeacherHidden:
        return TeacherHidden(hidden=self._hidden[:num])


class Ref:
    """In place of a Ray object reference."""

    def __init__(self) -> None:
        self._future: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self._future

    def resolve(self, answer: object) -> None:
        if self._future.set_running_or_notify_cancel():
            self._future.set_result(answer)


@dataclass(frozen=True)
class Method:
    """In place of a method of a Ray handle."""

    remote: Callable[..., Ref]


class SimulatedEngine:
    """In place of the handle of a generator or a teacher."""

    def __init__(self, server: Server, answers: Answers, version: Callable[[], int]) -> None:
        self._server = server
        self._answers = answers
        self._version = version
        self.ping = Method(self._ping)
        self.score = Method(self._score)

    def _serve(self, work: Work, answer: Callable[[], object]) -> Ref:
        ref = Ref()
        self._server.serve(work, lambda: ref.resolve(answer()))
        return ref

    def _ping(self) -> Ref:
        ref = Ref()
        ref.resolve(None)
        return ref

    def _score(self, context_ids: IntArray, token_ids: IntArray) -> Ref:
        num = len(token_ids)
        work = Work(stage="score", num_prompt=len(context_ids) + num, num_output=0)
        return self._serve(work, lambda: self._answers.hidden(num))


class SimulatedGenerator(SimulatedEngine):
    def __init__(self, server: Server, answers: Answers, version: Callable[[], int]) -> None:
        super().__init__(server, answers, version)
        self.generate = Method(self._generate)

    def _generate(self, prompt_ids: IntArray, options: SamplingOptions, request_id: str) -> Ref:
        first, num = self._version(), min(self._answers.rollout_length(), options.max_tokens)
        work = Work(stage="rollout", num_prompt=len(prompt_ids), num_output=num)
        return self._serve(work, lambda: self._answers.completion(num, versions=(first, self._version())))


class SimulatedTeacher(SimulatedEngine):
    def __init__(self, server: Server, answers: Answers, version: Callable[[], int]) -> None:
        super().__init__(server, answers, version)
        self.generate = Method(self._generate)

    def _generate(
        self, prompt_ids: IntArray, options: SamplingOptions, request_id: str, top_k: int | None
    ) -> Ref:
        num = min(self._answers.refinement_length(len(prompt_ids)), options.max_tokens)
        work = Work(stage="refine", num_prompt=len(prompt_ids), num_output=num)
        made = lambda: TeacherCompletion(completion=self._answers.completion(num, versions=(0, 0)))  # noqa: E731
        return self._serve(work, made)


@dataclass
class WaitingLearner:
    """A learner that takes `seconds(batch)` a step, and remembers when it was busy."""

    seconds: Callable[[TrainingBatch], float]
    busy: list[tuple[float, float]] = field(default_factory=list)
    """(begin, end) of each step and of each push, in the loop's seconds."""
    num_trajectories: int = 0
    policy_version: int = 0

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        await self.work(self.seconds(batch))
        self.num_trajectories += batch.num_trajectories
        self.policy_version += 1
        return LearnerStep(
            learner_step=batch.learner_step,
            policy_version=self.policy_version,
            loss=1.0,
            grad_norm=1.0,
            learning_rate=1e-6,
            num_loss_tokens=batch.num_loss_tokens,
            student_logprob_mean=-0.5,
            learn_s=0.0,
        )

    async def work(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        if seconds:
            await asyncio.sleep(seconds)
        self.busy.append((start, loop.time()))

    async def save(self, folder: Path) -> None:
        (folder / "version.txt").write_text(str(self.policy_version))

    async def load(self, folder: Path) -> int:
        self.policy_version = int((folder / "version.txt").read_text())
        return self.policy_version


@dataclass
class WaitingSync:
    """Pushes by waiting; the learner is busy meanwhile, the pool is told as by the real one."""

    learner: WaitingLearner
    pool: EnginePool
    seconds: float
    version: int = 0

    async def push(self, policy_version: int) -> SyncReport:
        async with self.pool.pushing():
            await self.learner.work(self.seconds)
            self.pool.has_weights({member: member.actor for member in self.pool.up})
        self.version = policy_version
        return SyncReport(
            policy_version=policy_version, num_parameters=1, num_bytes=4, checksum="0" * 64, sync_s=0.0
        )


class NullRecorder:
    """Writes nothing."""

    async def trajectories(self, trajectories: Sequence[Trajectory], *, learner_step: int) -> None:
        pass

    async def checkpoint(
        self, state: RunState, learner: Learner, *, finished: Sequence[Trajectory] = ()
    ) -> None:
        pass


def testbed_inputs(config: TrdConfig, *, num_problems: int) -> RunInputs:
    """The testbed's tokenizer, prompts and grader over a fixed set of its problems.

    The endless stream remembers what it gave out, which would be seen as growth of the driver.
    """
    inputs = read_inputs(config)
    problems = tuple(generate_problems(seed=config.run.seed, split=Split("train"), num=num_problems))
    return dataclasses.replace(inputs, stream=FiniteStream(problems, seed=config.run.seed))


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How many engines of which kind, and what they take."""

    generators: Sequence[Server]
    teachers: Sequence[Server]
    generator_slots: int
    """Requests that the pool gives to one generator at once."""
    teacher_slots: int
    learn_s: Callable[[TrainingBatch], float]
    sync_s: float


@dataclass(frozen=True, kw_only=True)
class SimulatedRoles:
    roles: Roles
    learner: WaitingLearner
    generators: EnginePool
    teachers: EnginePool


@asynccontextmanager
async def simulated_roles(
    config: TrdConfig, answers: Answers, cluster: Cluster, activity: RoleActivity
) -> AsyncIterator[SimulatedRoles]:
    """The roles of a run over a simulated cluster, watched as real ones are."""
    learner = WaitingLearner(seconds=cluster.learn_s)
    sync: WaitingSync
    version = lambda: sync.version  # noqa: E731
    generators = _pool(
        config, "generator", cluster.generator_slots,
        [SimulatedGenerator(server, answers, version) for server in cluster.generators], activity,
    )  # fmt: skip
    teachers = _pool(
        config, "teacher", cluster.teacher_slots,
        [SimulatedTeacher(server, answers, version) for server in cluster.teachers], activity,
    )  # fmt: skip
    sync = WaitingSync(learner=learner, pool=generators, seconds=cluster.sync_s)
    roles = Roles(
        generator=RayGenerators(generators),
        teacher=RayTeachers(teachers),
        learner=learner,
        weight_sync=sync,
    )
    # A run that ends cancels what is still in the making, and `call` then cancels the reference.
    with mock.patch("actors.calls.ray.cancel", lambda ref: None):
        async with generators.watched(), teachers.watched():
            yield SimulatedRoles(roles=roles, learner=learner, generators=generators, teachers=teachers)


def _pool(
    config: TrdConfig,
    role: str,
    num_slots: int,
    handles: Sequence[SimulatedEngine],
    activity: RoleActivity,
) -> EnginePool:
    def never(index: int) -> NamedActor:
        raise AssertionError(f"{role} {index} was lost, and nothing here may be")

    return EnginePool(
        role,
        [NamedActor(name=f"{role}-{index}", handle=handle) for index, handle in enumerate(handles)],
        create=never,
        limits=PoolLimits(request_s=1e6, start_s=60.0, replace_s=60.0, num_slots=num_slots),
        faults=config.faults,
        activity=activity,
    )
