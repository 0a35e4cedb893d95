"""The commands about jobs behind `trd-ray submit status | logs | stop`; each returns an exit code.

It imports neither torch nor transformers: a question about a job is answered at once.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from ray.job_submission import JobDetails
from rich.table import Table
from rich.text import Text

from launch.consoles import console, error_console, show
from launch.submit.cluster import Cluster
from launch.submit.follow import Follower, succeeded, wait_for_end

_STOP_MARGIN_S = 30.0
_MOST_STOP_S = 7200.0


def status(address: str, job_id: str | None) -> int:
    """Print one job, or all. 0 even if the job failed: it is the question that succeeded."""
    cluster = Cluster(address)
    if job_id is None:
        show_jobs(cluster.jobs())
        return 0
    job = cluster.job(job_id)
    show("\n".join(f"{name:<11} {value}" for name, value in _facts(job)))
    return 0


def logs(address: str, job_id: str, *, follow: bool) -> int:
    """Print a job's log; with `follow` until its end, whose exit code is returned."""
    cluster = Cluster(address)
    if follow:
        cluster.job(job_id)
        return follow_job(cluster, job_id)
    _write(cluster.logs(job_id))
    return 0


def stop(address: str, job_id: str, *, wait: bool) -> int:
    """Ask a job to end with a checkpoint, and wait until it has."""
    cluster = Cluster(address)
    job = cluster.job(job_id)
    if not cluster.stop(job_id):
        show(f"{job_id} had ended before: {job.status.value}")
        return 0
    if not wait:
        show(f"{job_id} is asked to stop")
        return 0
    tell("it ends its step and writes a checkpoint first")
    ended = asyncio.run(wait_for_end(cluster, job_id, limit_s=_stop_limit_s(job)))
    show(f"{job_id} has ended: {ended.status.value}")
    return 0


def _stop_limit_s(job: JobDetails) -> float:
    """As long as Ray leaves it, and some more."""
    left = ((job.runtime_env or {}).get("env_vars") or {}).get("RAY_JOB_STOP_WAIT_TIME_S", "")
    return (float(left) if left.isdigit() else _MOST_STOP_S) + _STOP_MARGIN_S


def follow_job(cluster: Cluster, job_id: str) -> int:
    """Show a job's log until its end. 0 if it succeeded, else 1; Ctrl-C leaves the job alone."""
    try:
        job = asyncio.run(Follower(cluster, job_id, write=_write).follow())
    except KeyboardInterrupt:
        where = f"{job_id} --address {cluster.address}"
        tell(f"\nthe job goes on; follow it with  trd-ray submit logs {where} --follow")
        tell(f"stop it with                     trd-ray submit stop {where}")
        return 1
    tell(f"job {job_id} has ended: {job.status.value}{_reason(job)}")
    return 0 if succeeded(job) else 1


def _reason(job: JobDetails) -> str:
    """What the log did not show already."""
    if succeeded(job):
        return ""
    code = job.driver_exit_code
    first = (job.message or "").strip().splitlines()
    if code is not None:
        return f", exit code {code}"
    return f"\n{first[0]}" if first else ""


def show_jobs(jobs: Sequence[JobDetails]) -> None:
    """A table, newest last."""
    table = Table("job", "status", "run", "config", "started", "took")
    for column in table.columns:
        # An id that is cut cannot be given to the other commands.
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        metadata = job.metadata or {}
        table.add_row(
            job.submission_id or job.job_id or "",
            job.status.value,
            # Whoever submitted it chose the words; square brackets are no markup in them.
            Text(metadata.get("job_name", "")),
            Text(metadata.get("config", "")),
            _time(job.start_time),
            _took(job),
        )
    console.print(table)


def _facts(job: JobDetails) -> list[tuple[str, str]]:
    rows = [
        ("job", job.submission_id or job.job_id or ""),
        ("status", job.status.value),
        ("started", _time(job.start_time)),
        ("took", _took(job)),
        *sorted((job.metadata or {}).items()),
        ("entrypoint", job.entrypoint),
    ]
    if job.driver_exit_code is not None:
        rows.append(("exit code", str(job.driver_exit_code)))
    if job.message:
        rows.append(("message", job.message.strip().splitlines()[0]))
    return rows


def _time(milliseconds: int | None) -> str:
    if not milliseconds:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _took(job: JobDetails) -> str:
    if not job.start_time or not job.end_time:
        return ""
    return f"{(job.end_time - job.start_time) / 1000:,.0f} s"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def tell(text: str) -> None:
    """What is for people goes to standard error, beside what is for programs."""
    error_console.print(text, markup=False, highlight=False, soft_wrap=True)
