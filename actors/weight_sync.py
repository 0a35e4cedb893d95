"""The push of weights: learner ranks and generators meet in the same broadcasts."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence

from actors.calls import call, call_all
from actors.handles import NamedActor
from actors.weight_transfer import Receiver
from trd_ray.config import WeightSyncConfig
from trd_ray.errors import WeightSyncError, describe
from trd_ray.types import SyncReport
from trd_ray.weights import WeightManifest

_MIB = 2**20
# The ends limit each of their waits themselves, and name the culprit. A push has several of them in a
# row (begin, broadcast, load, resume); the driver's limit is only a last resort.
_WAITS_PER_PUSH = 4


class RayWeightSync:
    """Implements `WeightSync` between a group of learner ranks and a group of generators."""

    def __init__(
        self,
        config: WeightSyncConfig,
        *,
        learners: Sequence[NamedActor],
        generators: Sequence[NamedActor],
        dtype: str,
        workers_per_generator: int,
        timeout_s: float,
    ) -> None:
        """
        Args:
            dtype: format of the generators' weights, which is that on the wire.
            workers_per_generator: tensor-parallel size of their engines.
            timeout_s: limit of each wait of one push.
        """
        self._config = config
        self._learners = tuple(learners)
        self._generators = tuple(generators)
        self._dtype = dtype
        self._workers = workers_per_generator
        self._timeout_s = timeout_s
        self._manifest: WeightManifest | None = None

    @property
    def _limit_s(self) -> float:
        return _WAITS_PER_PUSH * self._timeout_s

    async def connect(self) -> None:
        """Bring rank 0 and all generators into one transfer group; once, before the first push."""
        first = self._learners[0]
        receivers = [Receiver(name=g.name, num_workers=self._workers) for g in self._generators]
        endpoints = await call(
            first.handle.listen_for_receivers.remote(
                receivers,
                backend=self._config.backend.value,
                address=self._config.host,
                bucket_bytes=self._config.bucket_mib * _MIB,
                timeout_s=self._timeout_s,
            ),
            actor=first.name,
            method="listen_for_receivers",
            timeout_s=self._limit_s,
        )
        joining = [
            g.handle.init_weight_transfer.remote(endpoint)
            for g, endpoint in zip(self._generators, endpoints, strict=True)
        ]
        connecting = first.handle.connect_receivers.remote()
        await asyncio.gather(
            call(connecting, actor=first.name, method="connect_receivers", timeout_s=self._limit_s),
            self._all(self._generators, joining, "init_weight_transfer"),
        )
        self._manifest = await call(
            first.handle.manifest.remote(self._dtype),
            actor=first.name,
            method="manifest",
            timeout_s=self._limit_s,
        )

    async def push(self, policy_version: int) -> SyncReport:
        """Send the learner's weights to every generator, and compare what they loaded.

        Raises `WeightSyncError` if a generator holds other weights than were sent, or the learner
        is at another version; `ActorTimeoutError` names who did not come.
        """
        if self._manifest is None:
            raise RuntimeError("RayWeightSync.push: connect() was not called")
        start = time.perf_counter()
        loading = [
            g.handle.update_weights.remote(self._manifest, policy_version, self._timeout_s)
            for g in self._generators
        ]
        sending = [learner.handle.push_weights.remote(self._dtype) for learner in self._learners]
        reports, _ = await asyncio.gather(
            self._all(self._learners, sending, "push_weights"),
            self._all(self._generators, loading, "update_weights"),
        )
        report = reports[0]
        assert report is not None  # rank 0 always reports
        self._check_version(report, policy_version)
        if self._config.verify:
            await self._verify(report)
        return dataclasses.replace(report, sync_s=time.perf_counter() - start)

    async def _verify(self, report: SyncReport) -> None:
        reading = [g.handle.weight_checksum.remote(self._timeout_s) for g in self._generators]
        checksums = await self._all(self._generators, reading, "weight_checksum")
        wrong = {
            g.name: checksum
            for g, checksum in zip(self._generators, checksums, strict=True)
            if checksum != report.checksum
        }
        if wrong:
            raise WeightSyncError(
                describe(
                    "generators hold other weights than the learner sent",
                    where=f"push of policy version {report.policy_version}",
                    got=wrong,
                    expected=report.checksum,
                    remedy="continue with --resume; if it comes again, the engine loads this architecture "
                    "otherwise than it stores it: run trd-ray doctor",
                )
            )

    def _check_version(self, report: SyncReport, policy_version: int) -> None:
        if report.policy_version != policy_version:
            raise WeightSyncError(
                describe(
                    "the learner pushed another version than was asked for",
                    where="learner-0.push_weights",
                    got=report.policy_version,
                    expected=str(policy_version),
                    remedy="continue with --resume",
                )
            )

    async def _all(self, actors: Sequence[NamedActor], refs: list, method: str) -> list:  # type: ignore[type-arg]
        return await call_all(refs, actors=[a.name for a in actors], method=method, timeout_s=self._limit_s)
