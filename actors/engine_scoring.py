"""What a vLLM engine says of tokens: targets of generated and of given ones, and verdicts on drafts.

Axis letters: P context tokens, T response tokens, K most likely tokens of the model.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from actors.engine import Engine
from actors.engine_logprobs import topk_targets
from actors.engine_options import SamplingOptions, sampling_params
from trd_ray.targets import first_outside
from trd_ray.types import DraftVerdict, FloatArray, IntArray, StopReason, TeacherCompletion, TopKTargets

if TYPE_CHECKING:
    from vllm import RequestOutput


class EngineScoring:
    """Log-probabilities out of one engine, as the model has them: before temperature and top-p."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ids = itertools.count()

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingOptions, request_id: str, *, top_k: int | None
    ) -> TeacherCompletion:
        """As `Engine.generate`, with the targets of the generated tokens if `top_k` is given.

        They come out of the same forward passes. A `top_k` above the vocabulary's size means all of it.
        """
        if top_k is None:
            return TeacherCompletion(completion=await self._engine.generate(prompt_ids, sampling, request_id))
        params = sampling_params(sampling, top_k=self._clamp(top_k))
        final = await self._engine.run(prompt_ids, params, request_id)
        completion = self._engine.completion(final)
        return TeacherCompletion(
            completion=completion,
            targets=topk_targets(final.outputs[0].logprobs, len(completion.token_ids)),
        )

    async def score(self, context_ids: IntArray, token_ids: IntArray, *, top_k: int) -> TopKTargets:
        """Targets of `token_ids` [T] after `context_ids` [P], from one pass over both.

        vLLM computes no log-probabilities of tokens that it finds in its prefix cache, and skips
        reading it for such a request by itself: all P + T tokens are computed. It holds the logits
        of all positions that it computes at a time: P + T of them without chunked prefill (always
        on a CPU), else at most `max_num_batched_tokens`; the rows of the chunks arrive together.

        Raises:
            ValueError: no context, no tokens, or P + T >= `max_model_len`.
        """
        final = await self._prefill(context_ids, token_ids, top_k=top_k, read_prefix_cache=False)
        return topk_targets(final.prompt_logprobs, len(token_ids))

    async def token_logprobs(self, context_ids: IntArray, token_ids: IntArray) -> FloatArray:
        """The [T] log-probability of each of `token_ids` after `context_ids` [P]."""
        return (await self.score(context_ids, token_ids, top_k=0)).token_logprobs

    async def verify(
        self, context_ids: IntArray, draft_ids: IntArray, *, top_k: int, temperature: float, seed: int
    ) -> DraftVerdict:
        """Judge a draft [T] after `context_ids` [P] (speculative distillation, arXiv 2410.11325).

        One pass over the draft, which reads the context from the prefix cache, tells which of its
        tokens are among the model's `top_k`. Only if one is not, one token is sampled after those
        before it, from the whole distribution at `temperature`. (One 1-token request a position
        would need one round trip less, but each computes the context's last, incomplete block.)
        """
        final = await self._prefill(context_ids, draft_ids, top_k=top_k, read_prefix_cache=True)
        if (final.num_cached_tokens or 0) < len(context_ids):
            targets = topk_targets(final.prompt_logprobs, len(draft_ids))
        else:
            # The position that predicts the first drafted token was cached too: its row holds nothing.
            targets = await self.score(context_ids, draft_ids, top_k=top_k)
        num_accepted = first_outside(targets, draft_ids)
        if num_accepted == len(draft_ids):
            return DraftVerdict(num_accepted=len(draft_ids), replacement=None)
        sampling = SamplingOptions(max_tokens=1, seed=seed, temperature=temperature)
        made = await self._engine.generate(
            np.concatenate([context_ids, draft_ids[:num_accepted]]), sampling, self._request_id("replace")
        )
        return DraftVerdict(
            num_accepted=num_accepted,
            replacement=int(made.token_ids[0]),
            replacement_ends=made.stop_reason is StopReason.STOP,
        )

    async def _prefill(
        self, context_ids: IntArray, token_ids: IntArray, *, top_k: int, read_prefix_cache: bool
    ) -> RequestOutput:
        """One pass over both. Rows of prompt positions that were read from the cache hold nothing."""
        if len(context_ids) == 0 or len(token_ids) == 0:
            raise ValueError(
                f"score: got {len(context_ids)} context and {len(token_ids)} response tokens; "
                "expected at least one of each"
            )
        # vLLM always samples; the token is dropped.
        params = sampling_params(
            SamplingOptions(max_tokens=1, seed=0, temperature=0.0),
            prompt_top_k=self._clamp(top_k),
            read_prefix_cache=read_prefix_cache,
        )
        return await self._engine.run(
            np.concatenate([context_ids, token_ids]), params, self._request_id("score")
        )

    def _clamp(self, top_k: int) -> int:
        # More than there are would end vLLM's process.
        return min(top_k, self._engine.vocab_size)

    def _request_id(self, what: str) -> str:
        return f"{what}-{next(self._ids)}"
