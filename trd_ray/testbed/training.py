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
    batch_size: int = 48
    learning_rate: float = 0.02
    """Of Muon, for the matrices of the layers."""
    adamw_scale: float = 0.5
    """Learning rate of AdamW, for all other parameters, as a fraction of `learning_rate`."""
    final_fraction: float = 0.0
    """Learning rate after the last step, as a fraction of `learning_rate`."""
    num_warmup_steps: int = 30
    weight_decay: float = 0.05
    num_parts: int = 4
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


def pad_id_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """The padding id of the testbed's tokenizer."""
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    return pad_id


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


class _Optimizers:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms.

    On these models Muon needs about a quarter of AdamW's steps, which is what lets both be made
    in minutes on two cores.
    """

    def __init__(self, model: Qwen3ForCausalLM, schedule: Schedule) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or ".layers." not in n]
        self._schedule = schedule
        self._muon = torch.optim.Muon(
            matrices, momentum=0.95, weight_decay=schedule.weight_decay, adjust_lr_fn="original"
        )
        self._adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, step: int) -> None:
        """Make optimizer step `step`, from 0, and drop the gradients."""
        learning_rate = self._schedule.learning_rate_at(step)
        pairs: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (self._muon, 1.0),
            (self._adamw, self._schedule.adamw_scale),
        )
        for optimizer, scale in pairs:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * scale
            optimizer.step()
            optimizer.zero_grad()


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[Random], Example],
    *,
    schedule: Schedule,
    seed: str,
    on_step: Callable[[int, float], None],
) -> None:
    """Train `model` in place on pairs drawn one by one.

    After each optimizer step, `on_step(step, loss)` is called with the number of steps done and
    the mean loss per response token in nats.
    """
    rng = Random(f"training/{seed}")
    optimizers = _Optimizers(model, schedule)
    model.train()
    # At these sizes plain matrix products in bfloat16 are faster on a CPU than the fused kernel,
    # whose backward pass takes longer than all other parts of the model together.
    model.set_attn_implementation("eager")
    for step in range(schedule.num_steps):
        loss = _train_step(model, tokenizer, [draw(rng) for _ in range(schedule.batch_size)], schedule)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(step)
        on_step(step + 1, loss)
    model.set_attn_implementation("sdpa")
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
            [prompts[i] for i in part], [responses[i] for i in part], pad_id_of(tokenizer)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=True):
            loss = response_loss(model, inputs, targets) / num_tokens
        loss.backward()
        total += loss.item()
    return total
