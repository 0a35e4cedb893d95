"""A learner that is lost comes back at its step, from checkpoint and log, or the run ends and says why."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import FakeGenerator, FakeLearner, FakeWeightSync
from tests.unit.trajectory_records import trajectory
from trd_ray.config import LearnerConfig, MethodConfig
from trd_ray.errors import DataError, LearnerLostError, RunFailedError
from trd_ray.recovery import Past, RecoveringLearner
from trd_ray.run_folder import RunFolder
from trd_ray.step_batch import step_batch
from trd_ray.types import TeacherHidden, TrainingBatch, Trajectory

METHOD, LEARNER = MethodConfig(), LearnerConfig()


def made(text: str) -> Trajectory:
    one = trajectory(correct=True, text=text)
    hidden = np.ones((len(one.token_ids), 3), dtype=np.float32)
    return dataclasses.replace(one, target=TeacherHidden(hidden=hidden))


def batch(step: int) -> TrainingBatch:
    return step_batch([made("a" * step)], learner_step=step, method=METHOD, learner=LEARNER)


@dataclass
class Log:
    """Every step up to `num`; step n holds one trajectory of n tokens."""

    num: int

    def steps(self) -> tuple[int, ...]:
        return tuple(range(1, self.num + 1))

    def read_step(self, learner_step: int) -> tuple[Trajectory, ...]:
        return (made("a" * learner_step),)


@dataclass
class Rig:
    folder: RunFolder
    log: Log | None = None
    max_restarts: int = 2
    learner: FakeLearner = field(default_factory=FakeLearner)
    sync: FakeWeightSync = field(default_factory=lambda: FakeWeightSync(FakeGenerator()))
    num_restarted: int = 0
    dies: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        learn = self.learner.learn

        async def mortal(taken: TrainingBatch):
            if self.dies():
                raise LearnerLostError("rank 0 died")
            return await learn(taken)

        self.learner.learn = mortal  # type: ignore[method-assign]

    async def restart(self) -> None:
        self.num_restarted += 1
        self.learner.policy_version = 0
        self.learner.batches.clear()

    def recovering(self) -> RecoveringLearner:
        return RecoveringLearner(
            self.learner,
            self.sync,
            restart=self.restart,
            past=Past(folder=self.folder, steps=self.log, method=METHOD, learner=LEARNER),
            max_restarts=self.max_restarts,
        )


def dies_at(*calls: int) -> Callable[[], bool]:
    count = iter(range(1, 1000))
    return lambda: next(count) in calls


def taught(rig: Rig) -> list[tuple[int, int]]:
    """(step, loss tokens) since the last restart."""
    return [(b.learner_step, b.num_loss_tokens) for b in rig.learner.batches]


async def test_a_learner_without_checkpoint_is_replayed_from_the_first_step(tmp_path: Path):
    rig = Rig(RunFolder.create(tmp_path), log=Log(2), dies=dies_at(3))
    learner = rig.recovering()
    for step in (1, 2):
        await learner.learn(batch(step))
    assert (await learner.learn(batch(3))).policy_version == 3
    assert taught(rig) == [(1, 1), (2, 2), (3, 3)], "the same steps, then the one that was broken off"
    assert rig.num_restarted == learner.num_restarts == 1


async def test_only_the_steps_after_the_last_checkpoint_are_replayed(tmp_path: Path):
    rig = Rig(RunFolder.create(tmp_path), log=Log(3), dies=dies_at(4))
    learner = rig.recovering()
    for step in (1, 2, 3):
        await learner.learn(batch(step))
        if step == 2:
            with rig.folder.writing_checkpoint(2) as unfinished:
                await learner.save(unfinished)
    await learner.learn(batch(4))
    assert taught(rig) == [(3, 3), (4, 4)]


async def test_a_learner_that_dies_while_it_is_replayed_is_started_once_more(tmp_path: Path):
    rig = Rig(RunFolder.create(tmp_path), log=Log(2), dies=dies_at(3, 5))
    learner = rig.recovering()
    for step in (1, 2, 3):
        await learner.learn(batch(step))
    assert taught(rig) == [(1, 1), (2, 2), (3, 3)]
    assert learner.num_restarts == 2


async def test_a_push_that_finds_the_learner_dead_is_made_by_the_one_that_comes_back(tmp_path: Path):
    rig = Rig(RunFolder.create(tmp_path), log=Log(1))
    learner = rig.recovering()
    await learner.learn(batch(1))
    push, failures = rig.sync.push, [LearnerLostError("rank 0 died")]

    async def once(version: int):
        if failures:
            raise failures.pop()
        return await push(version)

    rig.sync.push = once  # type: ignore[method-assign]
    await learner.push(1)
    assert (rig.sync.pushed, rig.learner.policy_version) == ([1], 1)


async def test_restarts_are_bounded_and_the_message_says_after_which_step(tmp_path: Path):
    rig = Rig(RunFolder.create(tmp_path), log=Log(1), dies=lambda: rig.learner.policy_version >= 1)
    learner = rig.recovering()
    await learner.learn(batch(1))
    with pytest.raises(RunFailedError, match=r"(?s)once more.*after step 1.*2 restarts.*rank 0 died"):
        await learner.learn(batch(2))


@pytest.mark.parametrize("log", [None, Log(0)])
async def test_without_a_log_the_run_ends_at_once_and_says_how_to_go_on(tmp_path: Path, log: Log | None):
    rig = Rig(RunFolder.create(tmp_path), log=log, dies=dies_at(2))
    learner = rig.recovering()
    await learner.learn(batch(1))
    for _ in range(2):
        with pytest.raises(RunFailedError, match=r"(?s)step 1.*log_targets=true.*--resume"):
            await learner.learn(batch(2))
    assert rig.num_restarted == 0, "minutes of all devices for nothing"


async def test_a_learner_at_its_checkpoint_needs_no_log(tmp_path: Path):
    class Unreachable(Log):
        def steps(self) -> tuple[int, ...]:
            raise DataError("no credentials")

    rig = Rig(RunFolder.create(tmp_path), log=Unreachable(1), dies=dies_at(2))
    learner = rig.recovering()
    await learner.learn(batch(1))
    with rig.folder.writing_checkpoint(1) as unfinished:
        await learner.save(unfinished)
    assert (await learner.learn(batch(2))).policy_version == 2
    assert rig.num_restarted == 1


async def test_a_learner_that_was_not_brought_back_is_never_saved_as_if_it_were(tmp_path: Path):
    class Damaged(Log):
        def read_step(self, learner_step: int) -> tuple[Trajectory, ...]:
            raise DataError(f"step {learner_step} is damaged")

    rig = Rig(RunFolder.create(tmp_path), log=Damaged(1), dies=dies_at(2))
    learner = rig.recovering()
    await learner.learn(batch(1))
    with pytest.raises(DataError, match="step 1 is damaged"):
        await learner.learn(batch(2))
    with pytest.raises(DataError):
        await learner.save(tmp_path)
    assert not (tmp_path / "fake.txt").exists(), "the ranks are alive, with the weights of step 0"


async def test_a_recovery_that_was_cancelled_is_made_again_before_anything_else(tmp_path: Path):
    rig = Rig(RunFolder.create(tmp_path), log=Log(2), dies=dies_at(3))
    learner = rig.recovering()
    for step in (1, 2):
        await learner.learn(batch(step))
    restart, hang = rig.restart, asyncio.Event()

    async def slow() -> None:
        await restart()
        if rig.num_restarted == 1:
            await hang.wait()

    learner._restart = slow
    step = asyncio.create_task(learner.learn(batch(3)))
    async with asyncio.timeout(5):
        while rig.num_restarted < 1:
            await asyncio.sleep(0)
    step.cancel()
    await asyncio.wait({step})
    await learner.catch_up()
    assert taught(rig) == [(1, 1), (2, 2)]
    assert (rig.sync.pushed, rig.num_restarted) == ([2], 2)


async def test_a_replacement_gets_weights_between_steps_and_never_within_one(tmp_path: Path):
    rig = Rig(RunFolder.create(tmp_path), log=Log(0))
    learner = rig.recovering()
    learning, go_on = asyncio.Event(), asyncio.Event()
    learn = rig.learner.learn

    async def slow(taken: TrainingBatch):
        learning.set()
        await go_on.wait()
        return await learn(taken)

    rig.learner.learn = slow  # type: ignore[method-assign]
    step = asyncio.create_task(learner.learn(batch(1)))
    await learning.wait()
    catching_up = asyncio.create_task(learner.catch_up())
    for _ in range(10):
        await asyncio.sleep(0)
    assert rig.sync.pushed == []
    go_on.set()
    await step
    await catching_up
    assert rig.sync.pushed == [1], "the version that the learner has by then"
