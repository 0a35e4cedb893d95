"""A local Ray cluster for the tests of this folder alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from actors.cluster import join_cluster, leave_cluster
from trd_ray.config import RayConfig


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Four cores by name: these actors only wait."""
    join_cluster(RayConfig(num_cpus=4, object_store_gib=0.2))
    yield
    leave_cluster()
    assert not ray.is_initialized()
