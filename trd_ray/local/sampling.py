"""Batched sampling from a transformers model with a key-value cache.

Axis letters: B requests, P padded prompt tokens, T generated tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from trd_ray.config import SamplingConfig
from trd_ray.types import FloatArray, IntArray, StopReason, TopKTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One sequence to generate."""

    prompt_ids: IntArray
    """[P]"""
    sampling: SamplingConfig
    seed: int
    top_k: int | None = None
    """Also return the targets of the generated tokens, with so many most likely ones of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """One generated sequence."""

    token_ids: IntArray
    """[T], the end token included if it came."""
    logprobs: FloatArray
    """[T] under the model at temperature 1."""
    stop_reason: StopReason
    targets: TopKTargets | None = None
    """None unless asked for."""


@torch.no_grad()
def sample(
    model: PreTrainedModel, requests: Sequence[SampleRequest], *, end_ids: frozenset[int]
) -> list[Sampled]:
    """Generate for all requests at once; each stops at an end token or its own `max_tokens`."""
    device = next(model.parameters()).device
    rows = [_Row(request, end_ids, device) for request in requests]
    ids_BP, mask_BP = _left_pad([row.request.prompt_ids for row in rows], device)
    past = None
    was_training = model.training
    model.eval()
    for _ in range(max(row.request.sampling.max_tokens for row in rows)):
        positions = (mask_BP.cumsum(-1) - 1).clamp(min=0)[:, -ids_BP.shape[1] :]
        output = model(
            input_ids=ids_BP,
            attention_mask=mask_BP,
            position_ids=positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = output.past_key_values
        next_B = torch.tensor(
            [row.step(logits_V) for row, logits_V in zip(rows, output.logits[:, -1], strict=True)]
        )
        if all(row.stop_reason is not None for row in rows):
            break
        ids_BP = next_B.to(device)[:, None]
        mask_BP = torch.cat([mask_BP, torch.ones_like(ids_BP)], dim=1)
    model.train(was_training)
    return [row.result() for row in rows]


class _Row:
    """One sequence while it grows."""

    def __init__(self, request: SampleRequest, end_ids: frozenset[int], device: torch.device) -> None:
        self.request = request
        self.stop_reason: StopReason | None = None
        self._end_ids = end_ids
        self._generator = torch.Generator(device=device).manual_seed(request.seed)
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._topk: list[tuple[torch.Tensor, torch.Tensor]] = []

    def step(self, logits_V: torch.Tensor) -> int:
        """Choose the next token; a row that has stopped repeats its last one, unrecorded."""
        if self.stop_reason is not None:
            return self._token_ids[-1]
        token = choose_token(logits_V.float(), self.request.sampling, self._generator)
        self._token_ids.append(token)
        logprobs_V = torch.log_softmax(logits_V.float(), dim=-1)
        self._logprobs.append(float(logprobs_V[token]))
        if self.request.top_k is not None:
            top = logprobs_V.topk(min(self.request.top_k, len(logprobs_V)))
            self._topk.append((top.indices.cpu(), top.values.cpu()))
        if token in self._end_ids:
            self.stop_reason = StopReason.STOP
        elif len(self._token_ids) >= self.request.sampling.max_tokens:
            self.stop_reason = StopReason.LENGTH
        return token

    def result(self) -> Sampled:
        assert self.stop_reason is not None
        logprobs = np.asarray(self._logprobs, dtype=np.float32)
        targets = None
        if self.request.top_k is not None:
            targets = TopKTargets(
                topk_ids=torch.stack([ids for ids, _ in self._topk]).numpy().astype(np.int32),
                topk_logprobs=torch.stack([values for _, values in self._topk]).numpy(),
                token_logprobs=logprobs,
            )
        return Sampled(
            token_ids=np.asarray(self._token_ids, dtype=np.int32),
            logprobs=logprobs,
            stop_reason=self.stop_reason,
            targets=targets,
        )


def choose_token(logits_V: torch.Tensor, sampling: SamplingConfig, generator: torch.Generator) -> int:
    """Temperature, then top-k, then top-p (as vLLM orders them), then one draw; argmax at 0."""
    if sampling.temperature == 0.0:
        return int(logits_V.argmax())
    logits_V = logits_V / sampling.temperature
    if sampling.top_k:
        kept = torch.topk(logits_V, min(sampling.top_k, logits_V.numel())).values[-1]
        logits_V = logits_V.masked_fill(logits_V < kept, -torch.inf)
    probs_V = torch.softmax(logits_V, dim=-1)
    if sampling.top_p < 1.0:
        sorted_V, order_V = probs_V.sort(descending=True)
        # The token that crosses top_p is still kept: what stands before it must be below top_p.
        dropped_V = sorted_V.cumsum(-1) - sorted_V >= sampling.top_p
        probs_V = probs_V.index_fill(0, order_V[dropped_V], 0.0)
    return int(torch.multinomial(probs_V, 1, generator=generator))


def _left_pad(prompts: Sequence[IntArray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids_BP = torch.zeros(len(prompts), width, dtype=torch.long)
    mask_BP = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BP[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask_BP[row, width - len(prompt) :] = 1
    return ids_BP.to(device), mask_BP.to(device)
