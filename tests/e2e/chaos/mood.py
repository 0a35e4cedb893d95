"""When an actor fails by itself. The actors are in a module each: one need not load the others' libraries."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np

from tests.e2e.chaos.faults import IN_ACTOR, Fault, Kind, Moment, Target
from trd_ray.types import Completion

FAULT, STRUCK, RUN = "TRD_CHAOS_FAULT", "TRD_CHAOS_STRUCK", "TRD_CHAOS_RUN"
"""Environment variables, which Ray's processes and theirs inherit: the fault, the file that says that it
has struck, and what tells this run's processes from others'."""


class Rehearsed(RuntimeError):
    """Raised in place of whatever a method of an actor would do."""


def claim(fault: Fault) -> bool:
    """Whether the fault may strike now: it does so once, whoever comes first and however often it resumes."""
    try:
        with Path(os.environ[STRUCK]).open("x") as file:
            file.write(f"{os.getpid()} {time.time()} {fault.dump()}\n")
    except FileExistsError:
        return False
    return True


class Mood:
    """Counts an actor's calls and says which of them fail."""

    def __init__(self, target: Target) -> None:
        self._fault = Fault.read(os.environ[FAULT])
        self._is_target = self._fault.target is target
        self._num_calls = 0
        self._num_left = 0

    def kind(self, moment: Moment) -> Kind | None:
        """What this call of a stage is to do; None for nothing but its work."""
        fault = self._fault
        by_itself = fault.kind in IN_ACTOR or moment is Moment.START
        if not (self._is_target and by_itself and fault.moment is moment):
            return None
        self._num_calls += 1
        if self._num_left:
            self._num_left -= 1
            return fault.kind
        if self._num_calls < fault.nth or not claim(fault):
            return None
        self._num_left = fault.times - 1 if fault.kind is not Kind.SLOW else 0
        return fault.kind

    async def pass_by(self, moment: Moment) -> Kind | None:
        """As `strike`, for a method of an event loop."""
        kind = self.kind(moment)
        if kind is Kind.SLOW:
            await asyncio.sleep(self._fault.slow_s)
        else:
            _die_or_raise(kind)
        return kind

    def strike(self, moment: Moment) -> Kind | None:
        """Do what the call is to do, unless it is an answer that is to be spoilt: whoever calls does that."""
        kind = self.kind(moment)
        if kind is Kind.SLOW:
            time.sleep(self._fault.slow_s)
        else:
            _die_or_raise(kind)
        return kind


def _die_or_raise(kind: Kind | None) -> None:
    if kind is Kind.RAISES:
        raise Rehearsed("a rehearsed failure")
    if kind in (Kind.KILL, Kind.STOP):
        os.kill(os.getpid(), signal.SIGKILL if kind is Kind.KILL else signal.SIGSTOP)


def not_finite(completion: Completion) -> Completion:
    return dataclasses.replace(completion, logprobs=np.full_like(completion.logprobs, np.nan))
