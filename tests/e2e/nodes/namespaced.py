"""The same in network namespaces, where loopback reaches nobody else. Needs root, so it is asked for by name:

pytest tests/e2e/nodes/namespaced.py
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.e2e.nodes.cluster import Node, node_cluster
from tests.e2e.nodes.namespaces import namespaced_specs
from tests.e2e.nodes.test_nodes import LEARNER, actors_on, finish, running
from tests.e2e.processes import wait_for_lines

_LISTENING = """
import psutil, sys
sockets = psutil.Process(int(sys.argv[1])).net_connections("tcp")
print(*(s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN))
"""


def listening_on(node: Node, pid: int) -> Counter[str]:
    """Addresses on which a process listens, seen from within its namespace."""
    ask = [*node.spec.prefix, sys.executable, "-c", _LISTENING, str(pid)]
    return Counter(subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True).stdout.split())


def test_ranks_and_engines_meet_over_nodes_that_share_no_loopback(tmp_path: Path):
    run_dir = tmp_path / "run"
    with (
        namespaced_specs(1, 3, 3) as specs,
        node_cluster(specs) as cluster,
        running(cluster, run_dir, "learner.num_ranks=2") as process,
    ):
        wait_for_lines(run_dir / "metrics.jsonl", 1, process)
        for node in cluster.nodes[1:]:
            listening = listening_on(node, actors_on(node)[LEARNER].pid)
            # One of Ray's own is on every address; ours are on the node's alone.
            assert listening.keys() == {"::", node.spec.address} and listening["::"] == 1, listening
        finish(process, run_dir)
