"""Speculative distillation (SKD, arXiv 2410.11325): the student drafts, the teacher mends.

The student drafts a block of tokens. The first of them that is not among the teacher's top k is
replaced by a token sampled from the teacher, what follows it is dropped, and the student goes on
behind the replacement. So early in training much is the teacher's, later most is the student's.
Each sample is a task of its own; a step's samples meet in the engines' batches.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from trd_ray.config import SamplingConfig, SpeculativeConfig
from trd_ray.interfaces import Generator, Teacher
from trd_ray.types import Completion, DraftVerdict, IntArray, Prompt, StopReason


@dataclass(frozen=True, kw_only=True, slots=True)
class Speculation:
    """One finished sample. Nothing is decoded here."""

    token_ids: IntArray
    """[T] at most `max_tokens`; ends with the end token on STOP."""
    num_kept: int
    """Of them, those that the student made."""
    num_replaced: int
    """Of them, those that the teacher made: one a block at most."""
    stop_reason: StopReason
    policy_version_min: int
    """Of the weights that drafted, dropped tokens included."""
    policy_version_max: int


async def speculate(
    prompt: Prompt,
    context_ids: IntArray,
    *,
    generator: Generator,
    teacher: Teacher,
    options: SpeculativeConfig,
    sampling: SamplingConfig,
    seed: int,
) -> Speculation:
    """One answer to `prompt`, drafted by the student and verified by the teacher.

    Args:
        context_ids: [P'] what the teacher reads before the answer.
        sampling: of the student; `max_tokens` bounds the whole answer.
        seed: of both models' samples; each block has its own.

    Raises:
        ValueError: a role answers with more than it was asked for, or with nothing.
    """
    answer: IntArray = np.zeros(0, dtype=np.int32)
    num_replaced = block = 0
    versions: list[int] = []
    stop: StopReason | None = None
    while stop is None:
        asked = min(options.block_tokens, sampling.max_tokens - len(answer))
        draft_seed, verdict_seed = _seeds(seed, block)
        draft = await generator.generate(
            dataclasses.replace(
                prompt, token_ids=np.concatenate([prompt.token_ids, answer]), seed=draft_seed
            ),
            dataclasses.replace(sampling, max_tokens=asked),
        )
        versions += [draft.policy_version_min, draft.policy_version_max]
        if draft.stop_reason is StopReason.ABORT:
            stop = StopReason.ABORT
            break
        verdict = await teacher.verify(
            np.concatenate([context_ids, answer]),
            draft.token_ids,
            top_k=options.top_k,
            temperature=options.temperature,
            seed=verdict_seed,
        )
        _require_sound(draft, verdict, asked=asked)
        answer = np.concatenate([answer, draft.token_ids[: verdict.num_accepted]])
        if verdict.replacement is not None:
            answer = np.append(answer, np.int32(verdict.replacement))
            num_replaced += 1
            ended = verdict.replacement_ends
            cut = False
        else:
            ended = draft.stop_reason is StopReason.STOP
            # Fewer than asked and no end token: the engine's context is full.
            cut = len(draft.token_ids) < asked
        if ended:
            stop = StopReason.STOP
        elif cut or len(answer) >= sampling.max_tokens:
            stop = StopReason.LENGTH
        block += 1
    return Speculation(
        token_ids=answer,
        num_kept=len(answer) - num_replaced,
        num_replaced=num_replaced,
        stop_reason=stop,
        policy_version_min=min(versions),
        policy_version_max=max(versions),
    )


def _require_sound(draft: Completion, verdict: DraftVerdict, *, asked: int) -> None:
    num_drafted = len(draft.token_ids)
    if not 1 <= num_drafted <= asked:
        raise ValueError(f"speculate: the generator drafted {num_drafted} tokens; expected 1 to {asked}")
    if (verdict.replacement is None) != (verdict.num_accepted == num_drafted):
        raise ValueError(
            f"speculate: the teacher accepted {verdict.num_accepted} of {num_drafted} tokens, "
            f"replacement {verdict.replacement}; expected a replacement if and only if one is refused"
        )


def _seeds(seed: int, block: int) -> tuple[int, int]:
    """Seeds in [0, 2**31) for the draft and the verdict of one block."""
    draft, verdict = np.random.SeedSequence((seed, block)).generate_state(2) >> 1
    return int(draft), int(verdict)
