"""The student generator: a vLLM engine whose weights follow the learner."""

from __future__ import annotations

import ray

from actors.engine import Engine, EngineOptions, SamplingOptions
from actors.engine_scoring import EngineScoring
from actors.members import Locatable
from actors.weight_transfer import WeightEndpoint
from trd_ray.device_turns import Residence
from trd_ray.types import Completion, FloatArray, IntArray
from trd_ray.weights import WeightManifest


class GeneratorHolder(Locatable):
    """Serves rollouts from one engine. Methods run concurrently in the actor's event loop."""

    def __init__(self, options: EngineOptions) -> None:
        self._engine = Engine(options)
        self._scoring = EngineScoring(self._engine)

    async def start(self) -> None:
        """Returns once the engine serves."""
        await self._engine.start()

    async def ping(self) -> None:
        """Returns if the engine can serve. Raises `EngineFailedError` if it cannot."""
        await self._engine.check_health()

    async def generate(self, prompt_ids: IntArray, sampling: SamplingOptions, request_id: str) -> Completion:
        return await self._engine.generate(prompt_ids, sampling, request_id)

    async def token_logprobs(self, prompt_ids: IntArray, token_ids: IntArray) -> FloatArray:
        return await self._scoring.token_logprobs(prompt_ids, token_ids)

    async def reside(self, residence: Residence, timeout_s: float) -> None:
        await self._engine.reside(residence, timeout_s=timeout_s)

    async def init_weight_transfer(self, endpoint: WeightEndpoint) -> None:
        await self._engine.init_weight_transfer(endpoint)

    async def update_weights(self, manifest: WeightManifest, policy_version: int, timeout_s: float) -> None:
        await self._engine.update_weights(manifest, policy_version, timeout_s=timeout_s)

    async def weight_checksum(self, timeout_s: float) -> str:
        return await self._engine.weight_checksum(timeout_s=timeout_s)

    async def shutdown(self) -> None:
        await self._engine.shutdown()


GeneratorActor = ray.remote(GeneratorHolder)
