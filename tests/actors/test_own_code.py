"""A user's module reaches Ray's workers: they import it themselves, from the folder of the command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.cluster import join_cluster, leave_cluster
from trd_ray.config import RayConfig

SOURCE = """
def own(log_q, log_p):
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1)
"""


@pytest.fixture
def cluster_started_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "only_here.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    join_cluster(RayConfig(num_cpus=2, object_store_gib=0.2))
    yield tmp_path
    leave_cluster()


def test_a_worker_imports_it_from_the_folder_of_the_command(cluster_started_in: Path) -> None:
    # Local, so that it travels itself: the worker's folder is not the one with the tests.
    def file_of(path: str) -> str:
        from trd_ray.custom_functions import divergence_function

        return str(divergence_function(path).__code__.co_filename)  # type: ignore[attr-defined]

    reference = ray.remote(file_of).options(num_cpus=0).remote("only_here:own")
    assert ray.get(reference, timeout=120) == str(cluster_started_in / "only_here.py")
