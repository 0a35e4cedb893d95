"""Runs over three nodes on this machine, each with an address of its own, and the death of one."""

from __future__ import annotations

import math
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.e2e.nodes.cluster import Node, NodeCluster, NodeSpec, node_cluster
from tests.e2e.processes import ROOT, command, wait_for_lines
from trd_ray.metrics import read_metrics
from trd_ray.run_folder import RunFolder

NUM_STEPS = 4
GENERATOR, TEACHER, LEARNER = "ray::GeneratorHolder", "ray::TeacherHolder", "ray::LearnerRank"
# Sizes that say where each role can be: Ray places the largest first.
LEARNER_CPUS, GENERATOR_CPUS, TEACHER_CPUS = 1.5, 1, 0.5
OPTIONS = (
    f"run.num_steps={NUM_STEPS}",
    "run.checkpoint_every=2",
    'data.eval=""',
    "placement.strategy=spread",
    "generator.num_actors=2",
    f"generator.resources.cpus={GENERATOR_CPUS}",
    f"teacher.resources.cpus={TEACHER_CPUS}",
    f"learner.resources.cpus={LEARNER_CPUS}",
    "weight_sync.shared_memory=false",  # what nodes on other machines would not have
)


def specs(*num_cpus: float) -> list[NodeSpec]:
    """On loopback, so that nothing here is reached from elsewhere. The first is the head."""
    return [NodeSpec(address=f"127.0.0.{i + 2}", num_cpus=cpus) for i, cpus in enumerate(num_cpus)]


@contextmanager
def running(cluster: NodeCluster, run_dir: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A run whose driver is at the head; killed if it is still there at the end."""
    process = subprocess.Popen(
        [
            *cluster.nodes[0].spec.prefix,
            *command("trd_opd.yaml", run_dir, *OPTIONS, f"ray.address={cluster.address}", *arguments),
        ],
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


def finish(process: subprocess.Popen[str], run_dir: Path, *, timeout_s: float = 600) -> None:
    assert process.wait(timeout_s) == 0, log_of(run_dir)
    metrics = read_metrics(RunFolder(run_dir).metrics)
    assert [m.learner_step for m in metrics] == list(range(1, NUM_STEPS + 1))
    assert all(math.isfinite(m.loss) for m in metrics)


def actors_on(node: Node) -> dict[str, psutil.Process]:
    """By role."""
    found = {}
    for process in node.processes():
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:  # a helper that has just ended
            continue
        found |= {role: process for role in (GENERATOR, TEACHER, LEARNER) if title.startswith(role)}
    return found


def test_a_run_over_nodes_with_an_address_each_finds_its_meeting_place(tmp_path: Path):
    run_dir = tmp_path / "run"
    with node_cluster(specs(1, 2, 1)) as cluster, running(cluster, run_dir) as process:
        wait_for_lines(run_dir / "metrics.jsonl", 1, process)
        head, large, small = (actors_on(node) for node in cluster.nodes)
        assert (head.keys(), large.keys(), small.keys()) == ({GENERATOR}, {LEARNER, TEACHER}, {GENERATOR})
        listening = [c for c in large[LEARNER].net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert cluster.nodes[1].spec.address in {c.laddr.ip for c in listening}
        finish(process, run_dir)


def test_a_run_outlives_a_node_with_a_generator_that_no_other_node_has_room_for(tmp_path: Path):
    run_dir = tmp_path / "run"
    with node_cluster(specs(1, 2, 1)) as cluster, running(cluster, run_dir) as process:
        wait_for_lines(run_dir / "metrics.jsonl", 1, process)
        assert actors_on(cluster.nodes[2]).keys() == {GENERATOR}
        cluster.nodes[2].kill()
        finish(process, run_dir)
    assert "is replaced (1 of 3)" in log_of(run_dir)


def test_a_learner_whose_node_dies_goes_on_at_another_node(tmp_path: Path):
    run_dir = tmp_path / "run"
    with node_cluster(specs(1, 3, 3)) as cluster, running(cluster, run_dir) as process:
        wait_for_lines(run_dir / "metrics.jsonl", 3, process)
        process.send_signal(signal.SIGSTOP)  # the next step is less than a second away
        (dying,) = (node for node in cluster.nodes[1:] if LEARNER in actors_on(node))
        dying.kill()
        process.send_signal(signal.SIGCONT)
        finish(process, run_dir)
    assert "the learner is at step 3 again, 1 of them replayed" in log_of(run_dir)
