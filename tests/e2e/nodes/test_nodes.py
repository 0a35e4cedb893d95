"""Runs over three nodes on this machine, each with an address of its own, and the death of one."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.e2e.nodes.cluster import Node, NodeCluster, NodeSpec
from tests.e2e.processes import ROOT, command
from trd_ray.metrics import read_metrics
from trd_ray.run_folder import RunFolder

NUM_STEPS = 4
# As many nodes' worth of actors as there are: each lies on another.
SPREAD = (
    f"run.num_steps={NUM_STEPS}",
    "run.checkpoint_every=2",
    'data.eval=""',
    "placement.strategy=spread",
    "generator.num_actors=2",
    "generator.resources.cpus=1",
    "teacher.resources.cpus=1",
    "learner.resources.cpus=1",
    "faults.heartbeat_s=1",
    "faults.heartbeat_timeout_s=20",
)


def specs(*num_cpus: float) -> list[NodeSpec]:
    """Loopback addresses, so that nothing here is reached from elsewhere. The head, where the driver is,
    comes first."""
    return [NodeSpec(address=f"127.0.0.{i + 2}", num_cpus=cpus) for i, cpus in enumerate(num_cpus)]


@contextmanager
def running(cluster: NodeCluster, run_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run on the cluster; killed if it is still there at the end."""
    process = subprocess.Popen(
        command("trd_opd.yaml", run_dir, *SPREAD, f"ray.address={cluster.address}", *arguments),
        stdout=run_dir.with_suffix(".log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | cluster.environment | {"COLUMNS": "200"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def log_of(run_dir: Path) -> str:
    return run_dir.with_suffix(".log").read_text()


def finish(process: subprocess.Popen[str], run_dir: Path, *, timeout_s: float = 240) -> None:
    assert process.wait(timeout_s) == 0, log_of(run_dir)
    metrics = read_metrics(RunFolder(run_dir).metrics)
    assert [m.learner_step for m in metrics] == list(range(1, NUM_STEPS + 1))
    assert all(math.isfinite(m.loss) for m in metrics)


def hosts_of(cluster: NodeCluster) -> Mapping[str, Node]:
    """The node of each kind of actor's process, by the name of its class; the last one found counts."""
    found = {}
    for node in cluster.nodes:
        for process in node.processes():
            title = " ".join(process.cmdline())
            for kind in ("GeneratorHolder", "TeacherHolder", "LearnerRankHolder"):
                if kind in title:
                    found[kind] = node
    return found


def listening_addresses(cluster: NodeCluster, kind: str) -> set[str]:
    found = set()
    for process in cluster.processes():
        if kind in " ".join(process.cmdline()):
            found |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    return found
