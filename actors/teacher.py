"""The teacher: a vLLM engine that generates and verifies, and what scores: it or a transformers model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from actors.engine import Engine, EngineOptions, SamplingOptions
from actors.engine_scoring import EngineScoring
from actors.members import Locatable
from actors.weight_transfer import WeightEndpoint
from trd_ray.choices import Device, DType
from trd_ray.device_turns import Residence
from trd_ray.scoring import AsyncScorer, HiddenScorer
from trd_ray.types import DraftVerdict, FloatArray, IntArray, TeacherCompletion, TeacherHidden, TopKTargets
from trd_ray.weights import WeightManifest


@dataclass(frozen=True, kw_only=True)
class ScorerOptions:
    """How the transformers model that scores is set up."""

    score_dtype: DType
    """Weights and activations."""
    hidden_dtype: DType
    """Format in which hidden states travel."""
    batch_tokens: int
    """Most tokens computed at once, padding included."""
    threads: int
    device: Device


class TeacherHolder(Locatable):
    """One teacher. Methods run concurrently in the event loop."""

    def __init__(
        self, *, model: Path, engine: EngineOptions | None, scorer: ScorerOptions | None, top_k: int
    ) -> None:
        """
        Args:
            engine: None for a method in which the teacher neither generates nor gives logprobs.
            scorer: None if hidden states are not asked for: then `score` is the engine's.
            top_k: of the engine's `score`; 0 for the tokens' own log-probabilities alone.
        """
        self._engine = None if engine is None else Engine(engine)
        self._scoring = None if self._engine is None else EngineScoring(self._engine)
        self._scorer = None if scorer is None else _load_scorer(model, scorer)
        self._scorer_device = Device.CPU if scorer is None else scorer.device
        self._top_k = top_k

    async def start(self) -> None:
        """Returns once the teacher serves."""
        if self._engine is not None:
            await self._engine.start()

    async def ping(self) -> None:
        """Returns if the engine can serve. Raises `EngineFailedError` if it cannot."""
        if self._engine is not None:
            await self._engine.check_health()

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingOptions, request_id: str, top_k: int | None = None
    ) -> TeacherCompletion:
        """One text. Raises `RuntimeError` if this teacher has no engine, as do all calls that need one."""
        return await self._served("generate").generate(prompt_ids, sampling, request_id, top_k=top_k)

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden | TopKTargets:
        """Hidden states if this teacher has a scorer, else the engine's log-probabilities."""
        if self._scorer is not None:
            return await self._scorer.score(context_ids, token_ids)
        return await self._served("score").score(context_ids, token_ids, top_k=self._top_k)

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        return await self._served("token_logprobs").token_logprobs(context_ids, token_ids)

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        return await self._served("verify").verify(
            context_ids, draft_ids, top_k=top_k, temperature=temperature, seed=seed
        )

    async def reside(self, residence: Residence, timeout_s: float) -> None:
        """Hold so much of the devices: the engine by its sleep mode, the scorer in host memory or not."""
        awake = residence is Residence.AWAKE
        if self._scorer is not None and not awake:
            await self._scorer.move(Device.CPU.value)
        if self._engine is not None:
            await self._engine.reside(residence, timeout_s=timeout_s)
        if self._scorer is not None and awake:
            await self._scorer.move(self._scorer_device.value)

    async def init_weight_transfer(self, endpoint: WeightEndpoint) -> None:
        await self._moving("init_weight_transfer").init_weight_transfer(endpoint)

    async def update_weights(self, manifest: WeightManifest, policy_version: int, timeout_s: float) -> None:
        await self._moving("update_weights").update_weights(manifest, policy_version, timeout_s=timeout_s)

    async def weight_checksum(self, timeout_s: float) -> str:
        return await self._moving("weight_checksum").weight_checksum(timeout_s=timeout_s)

    async def shutdown(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()

    def _served(self, method: str) -> EngineScoring:
        if self._scoring is None:
            raise RuntimeError(_no_engine(method))
        return self._scoring

    def _moving(self, method: str) -> Engine:
        if self._engine is None:
            raise RuntimeError(_no_engine(method))
        return self._engine


def _no_engine(method: str) -> str:
    return f"{method}: this teacher has no engine; its method lets it make no tokens and no logprobs"


def _load_scorer(model: Path, options: ScorerOptions) -> AsyncScorer:
    torch.set_num_threads(options.threads)
    return AsyncScorer(
        HiddenScorer.load(
            model,
            dtype=options.score_dtype,
            hidden_dtype=options.hidden_dtype,
            batch_tokens=options.batch_tokens,
            device=options.device.value,
        )
    )


TeacherActor = ray.remote(TeacherHolder)
