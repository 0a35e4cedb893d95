"""Supervised training of the testbed models: next-token loss on responses only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from trd_ray.testbed.corpus import Example
from trd_ray.testbed.tokenizer import TURN_END, TURN_START

IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Optimizer settings of one training run."""

    num_steps: int
    batch_size: int = 128
    learning_rate: float = 3e-3
    final_fraction: float = 0.02
    """Learning rate of the last step, as a fraction of `learning_rate`."""
    num_warmup_steps: int = 50
    weight_decay: float = 0.1
    num_parts: int = 2
    """Parts that a batch is cut into by length, so that short sequences are not padded."""

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 0: linear warm-up, then cosine."""
        if step < self.num_warmup_steps:
            return self.learning_rate * (step + 1) / self.num_warmup_steps
        done = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return self.learning_rate * (self.final_fraction + (1 - self.final_fraction) * cosine)


def wrap_user_message(user: str) -> str:
    """What the chat template makes of one user message with the generation prompt."""
    return f"{TURN_START}user\n{user}{TURN_END}\n{TURN_START}assistant\n"


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, nothing added."""
    return [e.ids for e in tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def response_loss(model: Qwen3ForCausalLM, inputs: Tensor, targets: Tensor) -> Tensor:
    """Sum over response tokens of -log p, in nats.

    `inputs` [B, S] is padded on the right: causal attention keeps padding out of what counts.
    `targets` [B, S] holds the next token where it is a response token, else `IGNORED`.
    """
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    keep = targets != IGNORED
    logits = model.lm_head(hidden[keep])
    return F.cross_entropy(logits.float(), targets[keep], reduction="sum")


def make_batch(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int
) -> tuple[Tensor, Tensor]:
    """`inputs` and `targets` [B, S] of `response_loss`."""
    length = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True)) - 1
    inputs = torch.full((len(prompts), length), pad_id)
    targets = torch.full((len(prompts), length), IGNORED)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids = torch.tensor([*prompt, *response])
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return inputs, targets


def make_optimizer(model: Qwen3ForCausalLM, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[Random], Example],
    *,
    schedule: Schedule,
    seed: int,
    on_step: Callable[[int, float], None],
) -> None:
    """Train `model` in place on pairs drawn one by one.

    After each optimizer step, `on_step(step, loss)` is called with the number of steps done and
    the mean loss per response token in nats.
    """
    rng = Random(f"training/{seed}")
    optimizer = make_optimizer(model, schedule)
    model.train()
    for step in range(schedule.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(step)
        loss = _train_step(model, tokenizer, [draw(rng) for _ in range(schedule.batch_size)], schedule)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1, loss)
    model.eval()


def _train_step(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    schedule: Schedule,
) -> float:
    """Accumulate the gradient of one batch; returns the mean loss per response token."""
    prompts = encode(tokenizer, [wrap_user_message(e.user) for e in examples])
    responses = encode(tokenizer, [e.response + TURN_END for e in examples])
    num_tokens = sum(len(r) for r in responses)
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]) + len(responses[i]))
    part_size = -(-len(order) // schedule.num_parts)
    total = 0.0
    for start in range(0, len(order), part_size):
        part = order[start : start + part_size]
        inputs, targets = make_batch(
            [prompts[i] for i in part], [responses[i] for i in part], tokenizer.pad_token_id
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=AUTOCAST):
            loss = response_loss(model, inputs, targets) / num_tokens
        loss.backward()
        total += loss.item()
    return total


AUTOCAST = False
