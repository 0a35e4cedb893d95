"""The teacher: a vLLM engine that refines, and a transformers model that scores exactly."""

from __future__ import annotations

from pathlib import Path

import ray
import torch

from actors.engine import Engine, EngineOptions, SamplingOptions
from trd_ray.choices import Device, DType
from trd_ray.scoring import AsyncScorer, HiddenScorer
from trd_ray.types import Completion, IntArray, TeacherHidden


class TeacherHolder:
    """Serves refinements and scores of one teacher. Methods run concurrently in the event loop."""

    def __init__(
        self,
        *,
        model: Path,
        engine: EngineOptions | None,
        score_dtype: DType,
        hidden_dtype: DType,
        score_batch_tokens: int,
        threads: int,
        device: Device,
    ) -> None:
        """`engine` is None for a method that does not refine: then no engine is started."""
        torch.set_num_threads(threads)
        self._engine = None if engine is None else Engine(engine)
        self._scorer = AsyncScorer(
            HiddenScorer.load(
                model,
                dtype=score_dtype,
                hidden_dtype=hidden_dtype,
                batch_tokens=score_batch_tokens,
                device=device.value,
            )
        )

    async def start(self) -> None:
        """Returns once the teacher serves."""
        if self._engine is not None:
            await self._engine.start()

    async def generate(self, prompt_ids: IntArray, sampling: SamplingOptions, request_id: str) -> Completion:
        """One text. Raises `RuntimeError` if this teacher has no engine."""
        if self._engine is None:
            raise RuntimeError(
                "generate: this teacher has no engine; its method lets it make no tokens"
            )
        return await self._engine.generate(prompt_ids, sampling, request_id)

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden:
        return await self._scorer.score(context_ids, token_ids)

    async def shutdown(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()


TeacherActor = ray.remote(TeacherHolder)
