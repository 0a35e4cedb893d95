"""A sweep on a cluster that exists: its trials join it, on the node of the sweep, as many as fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.e2e.nodes.cluster import node_cluster
from tests.e2e.nodes.test_nodes import specs
from tests.e2e.processes import CONFIGS, ROOT
from trd_ray.sweep.state import SweepFolder, SweepState, TrialStatus

NUM_TRIALS, AT_ONCE = 3, 2


def test_trials_join_the_cluster_as_many_at_once_as_fit(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    memory = "".join(f", {role}.resources.memory_gib: 0.1" for role in ("generator", "teacher", "learner"))
    path.write_text(
        f"base: {CONFIGS / 'opd_reverse_kl.yaml'}\ndir: {tmp_path / 'out'}\n"
        f"seeds: {list(range(NUM_TRIALS))}\n"
        f"set: {{run.num_steps: 20, generator.sampling.temperature: 6.0{memory}}}\n"
    )
    # Half a core for each of three actors and the driver: the first trial fills two thirds of the head.
    with node_cluster(specs(3, 2)) as cluster:
        with path.open("a") as file:
            file.write(f"ray: {{address: '{cluster.address}'}}\n")
        done = subprocess.run(
            [sys.executable, "-m", "tests.actors.scripted_sweep", str(path)],
            capture_output=True, text=True, timeout=400, cwd=ROOT, env=os.environ | cluster.environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        head = cluster.nodes[0].spec.address
    folder = SweepFolder(tmp_path / "out")
    names = [record.name for record in SweepState.read(folder).records]
    assert {SweepState.read(folder)[name].status for name in names} == {TrialStatus.DONE}
    joined = [json.loads((folder.run(name).path / "joined").read_text()) for name in names]
    assert len(joined) == NUM_TRIALS and {each["node"] for each in joined} == {head}
    at_once = [sum(a["since"] <= b["since"] < a["until"] for a in joined) for b in joined]
    assert max(at_once) == AT_ONCE
