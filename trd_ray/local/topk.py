"""Top-k targets of given tokens from a transformers model. Axis letters: B requests, T, V, K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from trd_ray.batching import pack_lengths, pad_right
from trd_ray.config import SamplingConfig
from trd_ray.local.sampling import choose_token
from trd_ray.targets import first_outside
from trd_ray.types import IntArray, TopKTargets

_BATCH_TOKENS = 8192
"""Tokens, padding included, that are computed at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKRequest:
    """One sequence whose tokens are scored."""

    context_ids: IntArray
    """[P] at least one."""
    token_ids: IntArray
    """[T] at least one."""
    top_k: int
    draw: tuple[float, int] | None = None
    """Temperature and seed: also draw a token in place of the first outside the top k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKScore:
    """What one request gives."""

    targets: TopKTargets
    drawn: int | None = None
    """None unless asked for, and where every token is inside the top k."""


def topk_of_logprobs(logprobs_TV: torch.Tensor, token_ids: IntArray, top_k: int) -> TopKTargets:
    """Targets of tokens [T] from whole rows; a `top_k` above V means V."""
    top = logprobs_TV.topk(min(top_k, logprobs_TV.shape[1]), dim=-1)
    own = logprobs_TV.gather(1, torch.from_numpy(token_ids.astype(np.int64)).to(logprobs_TV.device)[:, None])
    return TopKTargets(
        topk_ids=top.indices.cpu().numpy().astype(np.int32),
        topk_logprobs=top.values.cpu().numpy(),
        token_logprobs=own[:, 0].cpu().numpy(),
    )


@torch.no_grad()
def score_topk(model: PreTrainedModel, requests: Sequence[TopKRequest], *, pad_id: int) -> list[TopKScore]:
    """One record a request, in their order. Raises `ValueError` for one without context or tokens."""
    for request in requests:
        if len(request.context_ids) == 0 or len(request.token_ids) == 0:
            raise ValueError(
                f"score: got {len(request.context_ids)} context and {len(request.token_ids)} response "
                "tokens; expected at least one of each"
            )
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    scored: dict[int, TopKScore] = {}
    inputs = [np.concatenate([request.context_ids, request.token_ids[:-1]]) for request in requests]
    for group in pack_lengths([len(ids) for ids in inputs], budget=_BATCH_TOKENS):
        ids, mask = pad_right([inputs[index] for index in group], pad_id=pad_id)
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        for row, index in enumerate(group):
            start = len(requests[index].context_ids) - 1
            scored[index] = _score(logits[row, start : len(inputs[index])].float(), requests[index])
    model.train(was_training)
    return [scored[index] for index in range(len(requests))]


def _score(logits_TV: torch.Tensor, request: TopKRequest) -> TopKScore:
    targets = topk_of_logprobs(logits_TV.log_softmax(-1), request.token_ids, request.top_k)
    position = first_outside(targets, request.token_ids)
    if request.draw is None or position == len(request.token_ids):
        return TopKScore(targets=targets)
    temperature, seed = request.draw
    generator = torch.Generator(device=logits_TV.device).manual_seed(seed)
    drawn = choose_token(logits_TV[position], SamplingConfig(temperature=temperature), generator)
    return TopKScore(targets=targets, drawn=drawn)
