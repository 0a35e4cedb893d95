"""A Ray cluster of several nodes on this machine, each killable with all that it started."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.e2e.processes import ROOT
from tests.ports import free_port

_MARK = "TRD_RAY_TEST_NODES"
_START_S = 60.0
_OBJECT_STORE_BYTES = 150_000_000
# A dead node is known after 5 s instead of 15 s.
_QUICK = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_initial_delay_ms": "1000",
}
# A socket's path may have 107 bytes, and Ray adds more than half of that.
_SHORT = "/tmp"


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """One node before it is started."""

    address: str
    """Of its own on this machine: all of 127.0.0.0/8 is, and so is any in a network namespace."""
    num_cpus: float
    prefix: tuple[str, ...] = ()
    """Command that what follows is run by: `ip netns exec NAME`, or nothing."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A started one."""

    spec: NodeSpec
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """SIGKILL to everything at once, as a machine that loses its power would."""
        for process in self.processes():
            _send(process, signal.SIGKILL)
        self.process.wait(30)

    def processes(self) -> list[psutil.Process]:
        """All that it has started and that still run, the workers of a driver included."""
        return _marked(self.log.stem)


@dataclass(kw_only=True)
class NodeCluster:
    """The nodes of one cluster; the first is the head."""

    folder: Path
    name: str
    port: int
    token: str
    """Without which nobody may speak to its nodes."""
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        """For `ray.address`."""
        return f"{self.nodes[0].spec.address}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What nodes and drivers of the cluster need."""
        return {
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start(self, specs: Sequence[NodeSpec]) -> None:
        """Start nodes, and wait until they have joined; one by one, which Ray needs on one machine."""
        for spec in specs:
            node = self._start(spec)
            deadline = time.monotonic() + _START_S
            while b"Ray runtime started" not in node.log.read_bytes():
                assert node.process.poll() is None and time.monotonic() < deadline, node.log.read_text()
                time.sleep(0.1)

    def _start(self, spec: NodeSpec) -> Node:
        mark = f"{self.name}-{len(self.nodes)}"
        log = self.folder / f"{mark}.log"
        where = ["--head", f"--port={self.port}", "--include-dashboard=false"]
        if self.nodes:
            where = [f"--address={self.address}"]
        # Ray's default ports are the same for each node, and those of the head are known to all.
        ports = [f"--{name}=0" for name in ("min-worker-port", "max-worker-port")]
        process = subprocess.Popen(
            [*spec.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *where, *ports,
             f"--node-ip-address={spec.address}", f"--num-cpus={spec.num_cpus:g}",
             f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--temp-dir={self.folder / 'ray'}"],
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | self.environment | _QUICK | {_MARK: mark},
        )  # fmt: skip
        node = Node(spec=spec, process=process, log=log)
        self.nodes.append(node)
        return node

    def processes(self) -> list[psutil.Process]:
        """Those of all nodes."""
        return _marked(f"{self.name}-")

    def end(self) -> None:
        """Kill every node; safe to call again."""
        for process in self.processes():
            _send(process, signal.SIGKILL)
        for node in self.nodes:
            node.process.wait(30)


@contextmanager
def node_cluster(specs: Sequence[NodeSpec]) -> Iterator[NodeCluster]:
    """A cluster while the block runs. Afterwards no process of it is left, whatever happened; raises
    `AssertionError` if one is."""
    with tempfile.TemporaryDirectory(prefix="trdn", dir=_SHORT, ignore_cleanup_errors=True) as folder:
        cluster = NodeCluster(
            folder=Path(folder),
            name=uuid.uuid4().hex[:8],
            # Nobody else is in a namespace.
            port=6379 if specs[0].prefix else free_port(),
            token=secrets.token_hex(32),
        )
        try:
            cluster.start(specs)
            yield cluster
        finally:
            cluster.end()
        left = psutil.wait_procs(cluster.processes(), timeout=10)[1]
        assert not left, f"still there: {left}"


def _marked(mark: str) -> list[psutil.Process]:
    """Processes with a mark that begins so in their environment; zombies do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            has_it = process.environ().get(_MARK, "").startswith(mark)
            if has_it and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
