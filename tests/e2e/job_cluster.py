"""A Ray cluster of one node on this machine, with a dashboard, a token, and dependencies of trd-ray only."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.ports import free_ports

_MARK = "TRD_RAY_TEST_JOBS"
_START_S = 120.0
# A socket's path may have 107 bytes, and Ray adds more than half of that.
_SHORT = "/tmp"


@dataclass(frozen=True, kw_only=True)
class JobCluster:
    """A running one."""

    address: str
    """Of the job API."""
    token: str
    mark: str
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a client of the cluster needs."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_USAGE_STATS_ENABLED": "0"}

    def processes(self) -> list[psutil.Process]:
        """Those of the node and of its jobs; zombies do not count."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(_MARK) == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def named(self, *parts: str) -> list[psutil.Process]:
        """Those whose command line holds one of `parts`."""
        found = []
        for process in self.processes():
            try:
                title = " ".join(process.cmdline())
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if any(part in title for part in parts):
                found.append(process)
        return found


@contextmanager
def job_cluster(*, num_cpus: int) -> Iterator[JobCluster]:
    """Nothing but Ray knows its interpreter: the node's PATH has no Python with Ray, its PYTHONPATH nothing,
    and trd-ray is not in its folder.

    Afterwards no process of it is left; raises `AssertionError` if one is.
    """
    with tempfile.TemporaryDirectory(prefix="trdj", dir=_SHORT, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        ports = free_ports(6)
        cluster = JobCluster(
            address=f"http://127.0.0.1:{ports[0]}",
            token=secrets.token_hex(32),
            mark=uuid.uuid4().hex,
            log=folder / "node.log",
        )
        node = _start(cluster, ports, folder=folder, num_cpus=num_cpus)
        try:
            _wait(cluster, node)
            yield cluster
        finally:
            for process in cluster.processes():
                _kill(process)
            node.wait(30)
            # What was being forked while it was looked for.
            for process in cluster.processes():
                _kill(process)
        left = psutil.wait_procs(cluster.processes(), timeout=10)[1]
        assert not left, f"still there: {left}"


def _start(cluster: JobCluster, ports: list[int], *, folder: Path, num_cpus: int) -> subprocess.Popen[bytes]:
    names = (
        "dashboard-port", "port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
        "metrics-export-port", "ray-client-server-port",
    )  # fmt: skip
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
         "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true",
         *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
         "--min-worker-port=0", "--max-worker-port=0", f"--num-cpus={num_cpus}",
         "--object-store-memory=200000000", f"--temp-dir={folder / 'ray'}"],
        stdout=cluster.log.open("wb"),
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment | cluster.environment | {_MARK: cluster.mark, "PATH": "/usr/bin:/bin"},
    )  # fmt: skip


def _wait(cluster: JobCluster, node: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while b"Ray runtime started" not in cluster.log.read_bytes():
        assert node.poll() is None and time.monotonic() < deadline, cluster.log.read_text()
        time.sleep(0.1)


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
