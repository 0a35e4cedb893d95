"""A small batched sampler for the testbed models, on torch and transformers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3ForCausalLM

from trd_ray.testbed.training import encode, pad_id_of, wrap_user_message

MAX_NEW_TOKENS = 64
"""Room for 5 terms with every number of two digits takes 43."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What a model answered to one prompt."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Response tokens as sampled; the last is the end token unless the budget ran out."""
    text: str
    """The response without special tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSettings:
    """How to sample."""

    temperature: float = 1.0
    """0 means the likeliest token each time."""
    seed: int = 0
    max_new_tokens: int = MAX_NEW_TOKENS
    batch_size: int = 256


@torch.inference_mode()
def sample(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    users: Sequence[str],
    settings: SamplerSettings,
) -> list[Sample]:
    """Answer each user message once, in the order given.

    Prompts are batched by length, so the samples depend on the whole list and on the batch size,
    but are the same in every call with the same arguments.
    """
    prompts = encode(tokenizer, [wrap_user_message(user) for user in users])
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    rng = torch.Generator().manual_seed(settings.seed)
    samples: dict[int, Sample] = {}
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        responses = _sample_batch(model, [prompts[i] for i in rows], pad_id_of(tokenizer), settings, rng)
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        for i, response, text in zip(rows, responses, texts, strict=True):
            samples[i] = Sample(prompt_ids=tuple(prompts[i]), token_ids=tuple(response), text=text)
    return [samples[i] for i in range(len(users))]


def _sample_batch(
    model: Qwen3ForCausalLM,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    settings: SamplerSettings,
    rng: torch.Generator,
) -> list[list[int]]:
    """Response token ids of one batch. Rows that have ended are taken out of it now and then."""
    inputs, mask = _left_pad(prompts, pad_id)
    lengths = mask.sum(dim=1, keepdim=True)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    responses: list[list[int]] = [[] for _ in prompts]
    active = torch.arange(len(prompts))
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    cache = DynamicCache(config=model.config)
    for _ in range(settings.max_new_tokens):
        hidden = model.model(
            input_ids=inputs, attention_mask=mask, position_ids=positions, past_key_values=cache
        ).last_hidden_state[:, -1]
        tokens = _draw(model.lm_head(hidden), settings.temperature, rng)
        for row, token, done in zip(active.tolist(), tokens.tolist(), ended.tolist(), strict=True):
            if not done:
                responses[row].append(token)
        ended = ended | (tokens == model.config.eos_token_id)
        if ended.all():
            break
        if ended.float().mean() > 0.25:
            keep = (~ended).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            active, ended, tokens = active[keep], ended[keep], tokens[keep]
            mask, lengths = mask[keep], lengths[keep]
        inputs, positions, lengths = tokens[:, None], lengths, lengths + 1
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return responses


def _left_pad(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [B, P]."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_id] * (length - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def _draw(logits: Tensor, temperature: float, rng: torch.Generator) -> Tensor:
    """One token a row of `logits` [B, V]."""
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return torch.multinomial(probabilities, 1, generator=rng).squeeze(1)
