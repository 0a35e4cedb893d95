"""Actors by the names that people know them by, their processes, and their end."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.calls import call
from trd_ray.errors import ActorTimeoutError, RunFailedError, brief

log = logging.getLogger(__name__)

_KILL_S = 30.0
_GRACE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Process:
    """Where an actor runs."""

    node_id: str
    pid: int


class Locatable:
    """What every actor of a run can say of itself."""

    def whereabouts(self) -> Process:
        """The node and the process that it runs in."""
        return Process(node_id=ray.get_runtime_context().get_node_id(), pid=os.getpid())

    def sees(self, file: Path) -> bool:
        """Whether there is such a file where it runs."""
        return os.path.isfile(file)  # no right to look is no sight of it either


@dataclass(kw_only=True, eq=False)
class NamedActor:
    """An actor handle and the name that people know it by. One object an actor: compared by identity."""

    name: str
    handle: Any  # Ray generates the type of a handle at run time
    process: Process | None = None
    """Known after `locate`."""
    has_place: bool = True
    """Some node has room for it; false for a replacement until its process runs."""


async def locate(actor: NamedActor, *, timeout_s: float) -> None:
    """Wait until the actor is there, and note its process. Raises as `call` does."""
    actor.process = await call(
        actor.handle.whereabouts.remote(), actor=actor.name, method="whereabouts", timeout_s=timeout_s
    )


@dataclass(frozen=True, kw_only=True)
class Life:
    """Tells the actors of one place apart, and the times between two pushes."""

    number: int = 0
    """Actors that were in this place before."""
    num_pushes: int = 0
    """Pushes of weights since the run began."""


@dataclass(kw_only=True, eq=False)
class Member:
    """One place in a pool; the actor in it may be replaced."""

    index: int
    actor: NamedActor
    is_up: bool = True
    """The process runs."""
    serves: bool = True
    """It takes requests; a replacement does once it has the weights of the others."""
    num_nonsense: int = 0
    """Answers without sense since the last good one."""
    life: Life = field(default_factory=Life)
    lost_because: Exception | None = None
    """Of the last actor that was lost here."""
    calls: set[asyncio.Task[Any]] = field(default_factory=set)
    """Tasks that wait for its answer."""

    def reborn(self) -> None:
        """The replacement's process runs; it does not serve yet."""
        self.is_up, self.serves = True, False
        self.num_nonsense = 0
        self.life = replace(self.life, number=self.life.number + 1)


async def kill(actor: NamedActor) -> None:
    """End an actor's process and its children whatever they do; returns at once if they are gone."""
    process = actor.process
    if process is not None and process.node_id != ray.get_runtime_context().get_node_id():
        await _kill_there(actor.name, process)
        process = None
    family = [] if process is None else _family(process.pid)
    # In a thread: Ray asks the cluster, which may take its time.
    await asyncio.to_thread(ray.kill, actor.handle)
    # Ray asks a process to end; one that is stopped does not, and keeps its memory and its devices.
    await asyncio.to_thread(_end, family, grace_s=_GRACE_S)


async def _kill_there(name: str, process: Process) -> None:
    there = NodeAffinitySchedulingStrategy(node_id=process.node_id, soft=False)
    ref = _kill_tree_there.options(scheduling_strategy=there).remote(process.pid)
    try:
        await call(ref, actor=f"node of {name}", method="kill", timeout_s=_KILL_S)
    except (ActorTimeoutError, RunFailedError, RayError) as error:
        # The node is gone, and the process with it.
        log.warning("%s could not be killed: %s", name, brief(error))


def kill_tree(pid: int) -> None:
    """End a process and all that descend from it, at once."""
    _end(_family(pid), grace_s=0.0)


def _family(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(family: list[psutil.Process], *, grace_s: float) -> None:
    """Wait until the processes are gone; kill those that are not after `grace_s` seconds."""
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_KILL_S)


_kill_tree_there = ray.remote(num_cpus=0, max_retries=0)(kill_tree)
