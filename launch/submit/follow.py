"""A job's log until the job's end, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from launch.submit.cluster import Cluster
from trd_ray.errors import ClusterError, describe

log = logging.getLogger(__name__)

# What may come in through a connection that is gone.
_LOST = (aiohttp.ClientError, ConnectionError, RuntimeError, TimeoutError)


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often a job is looked at, in seconds."""

    quiet_s: float = 15.0
    """Silence after which the job's state is asked for."""
    stale_s: float = 300.0
    """Silence after which the log is read over a new connection: the old one may be dead."""
    pause_s: float = 1.0
    """Between two connections, or two questions for the end."""


class Follower:
    """Shows what a job prints, each character once."""

    def __init__(
        self, cluster: Cluster, job_id: str, *, write: Callable[[str], None], pace: Pace | None = None
    ) -> None:
        self._cluster = cluster
        self._job_id = job_id
        self._write = write
        self._pace = pace or Pace()
        self._shown = 0

    async def follow(self) -> JobDetails:
        """Until the job has ended. Raises as `Cluster` does, and `ClusterError` if its log stays broken."""
        broken_since: float | None = None
        while True:
            before = self._shown
            try:
                await self._one_connection()
                lost: Exception | None = None
            except _LOST as error:
                if isinstance(error, ClusterError):
                    raise
                lost = error
            job = await self._ask()
            if job.status.is_terminal():
                await self._show_rest()
                return job
            if self._shown > before:
                broken_since = None
            elif lost is not None:
                broken_since = broken_since or time.monotonic()
                self._check_broken(broken_since, lost)
            await asyncio.sleep(self._pace.pause_s)

    async def _one_connection(self) -> None:
        """Show what comes in, less what was shown before; returns when the log ends or goes stale."""
        to_skip = self._shown
        stream = self._cluster.tail(self._job_id)
        silent_s = 0.0
        step = asyncio.ensure_future(_next(stream))
        try:
            while True:
                done, _ = await asyncio.wait({step}, timeout=self._pace.quiet_s)
                if not done:
                    silent_s += self._pace.quiet_s
                    if silent_s >= self._pace.stale_s or (await self._ask()).status.is_terminal():
                        return
                    continue
                text = step.result()
                if text is None:
                    return
                silent_s = 0.0
                fresh, to_skip = text[to_skip:], max(0, to_skip - len(text))
                self._show(fresh)
                step = asyncio.ensure_future(_next(stream))
        finally:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)

    async def _show_rest(self) -> None:
        text = await asyncio.to_thread(self._cluster.logs, self._job_id)
        self._show(text[self._shown :])

    def _show(self, text: str) -> None:
        if text:
            self._write(text)
            self._shown += len(text)

    async def _ask(self) -> JobDetails:
        return await asyncio.to_thread(self._cluster.job, self._job_id)

    def _check_broken(self, since: float, error: Exception) -> None:
        if time.monotonic() - since > self._cluster.patience.total_s:
            raise ClusterError(
                describe(
                    "the job's log cannot be followed; the job goes on",
                    where=f"--address {self._cluster.address}, job {self._job_id}",
                    got=f"{type(error).__name__}: {error}",
                    expected="a WebSocket connection to the job API",
                    remedy=f"let WebSockets through whatever stands between; or read it now and then: "
                    f"trd-ray submit logs {self._job_id} --address {self._cluster.address}",
                )
            ) from error


async def _next(stream: AsyncIterator[str]) -> str | None:
    return await anext(stream, None)


async def wait_for_end(
    cluster: Cluster, job_id: str, *, limit_s: float, pace: Pace | None = None
) -> JobDetails:
    """Ask until a job has ended. Raises `ClusterError` after `limit_s`."""
    pause_s = (pace or Pace()).pause_s
    deadline = time.monotonic() + limit_s
    while True:
        job = await asyncio.to_thread(cluster.job, job_id)
        if job.status.is_terminal():
            return job
        if time.monotonic() > deadline:
            raise ClusterError(
                describe(
                    "the job has not ended", where=f"--address {cluster.address}, job {job_id}",
                    got=f"{job.status.value} after {limit_s:.0f} s", expected="an end",
                    remedy=f"look at its log: trd-ray submit logs {job_id} --address {cluster.address}",
                )
            )  # fmt: skip
        await asyncio.sleep(pause_s)


def succeeded(job: JobDetails) -> bool:
    """Whether a job that has ended did what it was to do."""
    return bool(job.status == JobStatus.SUCCEEDED)
