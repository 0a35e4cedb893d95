"""The command line of a run in which one fault strikes: `python -m tests.e2e.chaos.driver train CONFIG ...`.

The same code as `trd-ray`, with actors that can fail and somebody who watches what the run is doing. The
fault comes in the environment, see `mood.py`.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import ray

import launch.cli
import launch.train
from launch.ray_actors import ActorClasses
from launch.wiring_ray import ray_roles
from tests.e2e.chaos.faults import IN_ACTOR, Fault, Kind, Moment, Target
from tests.e2e.chaos.generator import ChaosGenerator
from tests.e2e.chaos.learner import ChaosLearner
from tests.e2e.chaos.mood import FAULT, claim
from tests.e2e.chaos.teacher import ChaosTeacher
from trd_ray.activity import RoleActivity
from trd_ray.activity_records import ActivityLap, ActorState
from trd_ray.assembly import Roles, RunInputs
from trd_ray.config import TrdConfig
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder

_ACTORS = ActorClasses(
    generator=ray.remote(ChaosGenerator), teacher=ray.remote(ChaosTeacher), learner=ray.remote(ChaosLearner)
)

FILLER = "filler"
"""In a run folder that is full: what fills it."""

# Whose entry into a stage is the moment.
_WHOSE = {
    Moment.ROLLOUT: Role.GENERATOR,
    Moment.REFINE: Role.TEACHER,
    Moment.SCORE: Role.TEACHER,
    Moment.LEARN: Role.LEARNER,
    Moment.SYNC: Role.LEARNER,
    Moment.CHECKPOINT: Role.LEARNER,
}
_CLASSES = {
    Target.GENERATOR: "ray::ChaosGenerator",
    Target.TEACHER: "ray::ChaosTeacher",
    Target.LEARNER: "ray::ChaosLearner",
    Target.GENERATOR_CORE: "ray::ChaosGenerator",
    Target.TEACHER_CORE: "ray::ChaosTeacher",
}


class Watcher:
    """An `ActivityListener` that strikes when its moment has come."""

    def __init__(self, fault: Fault, folder: RunFolder) -> None:
        self._fault = fault
        self._folder = folder
        self._stages: dict[str, set[str]] = {}
        self._num_seen = 0
        self._done = False

    def on_actor(self, role: Role, actor: str | None, state: ActorState, label: str, at: float) -> None:
        moment = self._fault.moment
        if actor is None or moment is Moment.START or role is not _WHOSE[moment]:
            return
        now = set(label.split("+")) if state is ActorState.BUSY else set()
        before, self._stages[actor] = self._stages.get(actor, set()), now
        # An actor that is never without such work shows that it is in the stage by what it takes on besides.
        if moment in now and now != before:
            self._num_seen += 1
            if self._num_seen >= self._fault.nth:
                self.strike_soon()

    def on_depth(self, name: str, depth: int, at: float) -> None:
        pass

    def on_mark(self, name: str, detail: str, at: float) -> None:
        pass

    def on_lap(self, lap: ActivityLap, at: float) -> None:
        pass

    def strike_soon(self) -> None:
        if self._done:
            return
        self._done = True
        timer = threading.Timer(self._fault.delay_s, self._strike)
        timer.daemon = True
        timer.start()

    def _strike(self) -> None:
        fault = self._fault
        if fault.kind is Kind.FULL_DISK:
            if claim(fault):
                _fill(self._folder.path / FILLER)
            return
        number = signal.SIGSTOP if fault.kind is Kind.STOP else signal.SIGKILL
        if fault.target is Target.DRIVER:
            pid = os.getpid()
        else:
            victims = _victims(fault.target)
            if not victims:
                return  # it is being replaced; whoever reads the result sees that nothing has struck
            pid = victims[fault.index % len(victims)].pid
        if claim(fault):
            os.kill(pid, number)


def _victims(target: Target) -> list[psutil.Process]:
    """In the order in which they were started."""
    holders = [p for p in psutil.Process().children(recursive=True) if _title(p).startswith(_CLASSES[target])]
    if target in (Target.GENERATOR_CORE, Target.TEACHER_CORE):
        return [c for p in holders for c in p.children() if "EngineCore" in _title(c)]
    return holders


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        chunk = bytes(2**16)
        while chunk:
            try:
                file.write(chunk)
            except OSError:
                chunk = chunk[: len(chunk) // 2]


@asynccontextmanager
async def chaos_roles(
    config: TrdConfig, inputs: RunInputs, folder: RunFolder, activity: RoleActivity
) -> AsyncIterator[Roles]:
    """The roles of a run over Ray, one of which will fail."""
    fault = Fault.read(os.environ[FAULT])
    watcher = Watcher(fault, folder)
    if fault.moment is Moment.START and fault.target is Target.DRIVER:
        watcher.strike_soon()
    async with ray_roles(config, inputs, folder, activity, _ACTORS) as roles:
        if fault.kind not in IN_ACTOR and fault.moment is not Moment.START:
            activity.listen(watcher)
        yield roles


if __name__ == "__main__":
    launch.train.train = functools.partial(launch.train.train, wiring=chaos_roles)
    launch.cli.main()
