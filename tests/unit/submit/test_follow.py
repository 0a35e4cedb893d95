"""A log is shown once, over broken connections, until the job's end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
from ray.job_submission import JobDetails, JobStatus

from launch.submit.cluster import Cluster, Patience
from launch.submit.follow import Follower, Pace, succeeded, wait_for_end
from trd_ray.errors import ClusterError

QUICK = Pace(quiet_s=0.02, stale_s=0.1, pause_s=0.001)
HANG = object()


def details(status: JobStatus) -> JobDetails:
    return JobDetails(type="SUBMISSION", submission_id="trd_1", status=status, entrypoint="x")


class FakeJob:
    """A client: one script a connection, each item a text, an exception, or HANG."""

    def __init__(self, *connections: list[object], whole: str, states: list[JobStatus]) -> None:
        self._connections = list(connections)
        self._whole = whole
        self._states = states

    def get_job_info(self, job_id: str) -> JobDetails:
        state = self._states.pop(0) if len(self._states) > 1 else self._states[0]
        return details(state)

    def get_job_logs(self, job_id: str) -> str:
        return self._whole

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for item in self._connections.pop(0) if self._connections else []:
            if item is HANG:
                await asyncio.sleep(60)
            if isinstance(item, Exception):
                raise item
            yield str(item)


async def follow(job: FakeJob, *, patience_s: float = 5.0) -> tuple[str, JobDetails]:
    shown: list[str] = []
    cluster = Cluster("http://head:8265", connect=lambda _: job, patience=Patience(total_s=patience_s))  # type: ignore[arg-type,return-value]
    end = await Follower(cluster, "trd_1", write=shown.append, pace=QUICK).follow()
    return "".join(shown), end


RUNNING, SUCCEEDED, FAILED = JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED


async def test_a_whole_log_in_one_connection():
    text, end = await follow(FakeJob(["one\n", "two\n"], whole="one\ntwo\n", states=[SUCCEEDED]))
    assert text == "one\ntwo\n" and succeeded(end)


async def test_each_character_is_shown_once_over_broken_connections():
    job = FakeJob(
        ["one\n", "tw", RuntimeError("WebSocket connection closed unexpectedly")],
        ["one\ntwo\n", aiohttp.ClientConnectionError()],
        [ConnectionResetError()],
        ["o", "ne\n", "two\nthree\n"],
        whole="one\ntwo\nthree\nfour\n",
        states=[RUNNING, RUNNING, RUNNING, FAILED],
    )
    text, end = await follow(job)
    assert text == "one\ntwo\nthree\nfour\n" and end.status == FAILED and not succeeded(end)


async def test_a_silent_connection_to_a_job_that_has_ended_is_left():
    text, end = await follow(FakeJob(["one\n", HANG], whole="one\ntwo\n", states=[RUNNING, SUCCEEDED]))
    assert text == "one\ntwo\n" and succeeded(end)


async def test_a_connection_that_stays_silent_is_replaced():
    job = FakeJob(["one\n", HANG], ["one\ntwo\n"], whole="one\ntwo\n", states=[RUNNING] * 6 + [SUCCEEDED])
    text, _ = await follow(job)
    assert text == "one\ntwo\n"


async def test_a_job_that_is_still_running_when_its_log_ends_is_followed_on():
    job = FakeJob(["one\n"], ["one\ntwo\n"], whole="one\ntwo\n", states=[RUNNING, SUCCEEDED])
    assert (await follow(job))[0] == "one\ntwo\n"


async def test_a_log_that_stays_broken_is_given_up_and_the_job_left_alone():
    class Broken(FakeJob):
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            raise aiohttp.ClientConnectionError("no upgrade")
            yield ""

    with pytest.raises(ClusterError, match="the job goes on") as caught:
        await follow(Broken(whole="", states=[RUNNING]), patience_s=0.05)
    assert "no upgrade" in str(caught.value) and "WebSocket" in str(caught.value)


async def test_waiting_for_an_end_has_a_limit():
    job = FakeJob(whole="", states=[RUNNING, JobStatus.STOPPED])
    cluster = Cluster("http://head:8265", connect=lambda _: job)  # type: ignore[arg-type,return-value]
    assert (await wait_for_end(cluster, "trd_1", limit_s=5, pace=QUICK)).status == JobStatus.STOPPED
    job = FakeJob(whole="", states=[RUNNING])
    cluster = Cluster("http://head:8265", connect=lambda _: job)  # type: ignore[arg-type,return-value]
    with pytest.raises(ClusterError, match="has not ended"):
        await wait_for_end(cluster, "trd_1", limit_s=0.01, pace=QUICK)
