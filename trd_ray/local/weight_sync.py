"""The push of weights where generator and learner share one module: only the version moves."""

from __future__ import annotations

import time

from trd_ray.local.engine import LocalEngine
from trd_ray.local.learner import LocalLearner
from trd_ray.types import SyncReport
from trd_ray.weights import WeightManifest, checksum_named


class LocalWeightSync:
    """Implements `WeightSync`."""

    def __init__(self, learner: LocalLearner, engine: LocalEngine) -> None:
        self._learner = learner
        self._engine = engine

    async def push(self, policy_version: int) -> SyncReport:
        """Label the generator's weights, which are the learner's own, with their version."""
        start = time.perf_counter()
        manifest = WeightManifest.of(self._learner.named_weights())
        checksum = checksum_named(self._learner.named_weights())
        self._engine.policy_version = policy_version
        return SyncReport(
            policy_version=policy_version,
            num_parameters=manifest.num_parameters,
            num_bytes=manifest.num_bytes,
            checksum=checksum,
            sync_s=time.perf_counter() - start,
        )
