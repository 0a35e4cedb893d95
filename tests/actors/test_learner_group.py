"""Who is to blame where ranks and engines meet, and a driver that was stopped for a while."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import ray

from actors.calls import call
from actors.joint_call import joint_call
from actors.learner_group import RayLearner
from actors.members import Locatable, Member, NamedActor
from trd_ray.errors import (
    ActorTimeoutError,
    CheckpointError,
    DiskRefusedError,
    LearnerLostError,
    PlacementError,
    brief,
)

pytestmark = pytest.mark.usefixtures("cluster")


class Rank(Locatable):
    """Stands for a learner rank or an engine."""

    def __init__(self, *, dies: bool = False, elsewhere: bool = False, refusal: int = errno.ENOSPC) -> None:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        self._elsewhere = elsewhere
        self._refusal = refusal

    def sees(self, file: Path) -> bool:
        return not self._elsewhere and super().sees(file)

    def push(self, fault: str) -> str:
        if fault == "strange":
            raise RuntimeError("out of sockets")
        if fault == "verdict":
            raise ActorTimeoutError("no answer of 'generator-0'")
        if fault == "silent":
            time.sleep(20)
        return "sent"

    def save(self, folder: Path) -> None:
        raise OSError(self._refusal, os.strerror(self._refusal), str(folder))

    def load(self, folder: Path) -> int:
        raise CheckpointError(f"{folder} is damaged")

    async def think(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "thought"


# Three seconds after the process has been stopped.
_WAKES = "until grep -q '^State:.T' /proc/$1/status; do sleep 0.05; done; sleep 3; kill -CONT $1"

RankActor = ray.remote(num_cpus=0)(Rank)


def rank(index: int, **options: int) -> NamedActor:
    return NamedActor(name=f"learner-{index}", handle=RankActor.remote(**options))


def group(run_dir: Path, *ranks: NamedActor) -> RayLearner:
    return RayLearner(ranks, create=rank, host=lambda: "127.0.0.1", run_dir=run_dir, start_s=60, timeout_s=60)


async def push(fault: str, *, of_engine: str = "none"):
    sender, engine = rank(0), NamedActor(name="generator-0", handle=RankActor.remote())
    member = Member(index=0, actor=engine)
    result = await joint_call(
        "push",
        "receive",
        [(sender, sender.handle.push.remote(fault))],
        {member: engine.handle.push.remote(of_engine)},
        timeout_s=1,
        limit_s=60,
    )
    return result, member


async def test_a_rank_that_raises_in_place_of_sending_is_lost_and_no_engine_is_blamed():
    with pytest.raises(LearnerLostError, match=r"(?s)learner-0\.push.*out of sockets"):
        await push("strange", of_engine="strange")


async def test_what_the_sender_says_of_an_engine_is_a_verdict_on_the_engine():
    result, member = await push("verdict", of_engine="strange")
    assert list(result.lost) == [member]


async def test_an_engine_that_is_silent_when_others_break_off_is_named_with_call_and_time():
    result, member = await push("verdict", of_engine="silent")
    assert re.search(r"generator-0\.receive: nothing after \d+\.\d s", brief(result.lost[member]))


async def test_a_rank_that_dies_while_the_group_is_started_is_a_lost_rank(tmp_path: Path):
    with pytest.raises(LearnerLostError, match="learner-1"):
        await group(tmp_path, rank(0), rank(1, dies=True)).setup()


async def test_a_run_folder_that_a_rank_does_not_see_is_refused_before_anything_is_loaded(tmp_path: Path):
    with pytest.raises(PlacementError, match=rf"(?s)run\.dir.*{tmp_path}, where learner-1 does not see"):
        await group(tmp_path, rank(0), rank(1, elsewhere=True)).setup()
    assert list(tmp_path.iterdir()) == []


async def test_a_full_disk_is_no_lost_rank_and_is_told_without_the_stack_of_the_rank(tmp_path: Path):
    with pytest.raises(DiskRefusedError, match=r"learner-0\.save") as raised:
        await group(tmp_path, rank(0)).save(tmp_path)
    assert "No space left" in str(raised.value) and "Traceback" not in str(raised.value)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM])
async def test_what_the_disk_has_not_refused_may_pass_and_is_a_lost_rank(tmp_path: Path, number: int):
    with pytest.raises(LearnerLostError, match=rf"(?s)learner-0\.save.*{os.strerror(number)}"):
        await group(tmp_path, rank(0, refusal=number)).save(tmp_path)


async def test_what_a_rank_says_of_the_request_is_told_in_its_own_words(tmp_path: Path):
    with pytest.raises(CheckpointError) as raised:
        await group(tmp_path, rank(0)).load(tmp_path)
    assert str(raised.value) == f"{tmp_path} is damaged"


async def test_a_driver_that_was_stopped_does_not_take_its_own_sleep_for_that_of_an_actor():
    actor = rank(0)
    await call(actor.handle.think.remote(0), actor=actor.name, method="think", timeout_s=60)
    # Goes on by itself: whoever is stopped cannot.
    waking = subprocess.Popen(["bash", "-c", _WAKES, "bash", str(os.getpid())])
    asking = asyncio.create_task(
        call(actor.handle.think.remote(3.8), actor=actor.name, method="think", timeout_s=1)
    )
    await asyncio.sleep(0.5)
    started = time.monotonic()
    os.kill(os.getpid(), signal.SIGSTOP)
    assert time.monotonic() - started > 2, "it was stopped"
    assert await asking == "thought"
    assert waking.wait(10) == 0
