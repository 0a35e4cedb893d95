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
    answer = np.zeros(0, dtype=np.int32)
    num_replaced = 0
    versions: list[int] = []
    stop: StopReason | None = None
    while stop is None:
        room = min(options.block_tokens, sampling.max_tokens - len(answer))
        draft_seed, verdict_seed = _seeds(seed, len(answer))
        draft = await generator.generate(
            dataclasses.replace(
                prompt, token_ids=np.concatenate([prompt.token_ids, answer]), seed=draft_seed
            ),
            dataclasses.replace(sampling, max_tokens=room),
        )
        versions += [draft.policy_version_min, draft.policy_version_max]
        if draft.stop_reason is StopReason.ABORT:
            stop = StopReason.ABORT
            break
        if not 1 <= len(draft.token_ids) <= room:
            raise ValueError(
                f"speculate: the generator drafted {len(draft.token_ids)} tokens; expected 1 to {room}"
            )
        verdict = await teacher.verify(
            np.concatenate([context_ids, answer]),
            draft.token_ids,
            top_k=options.top_k,
            temperature=options.temperature,
            seed=verdict_seed,
        )
        answer = np.concatenate([answer, _block(draft, verdict)])
        num_replaced += verdict.replacement is not None
        # A draft that is shorter than asked and has no end token filled the engine's context.
        full = verdict.replacement is None and len(draft.token_ids) < room
        if _ends(draft, verdict):
            stop = StopReason.STOP
        elif full or len(answer) >= sampling.max_tokens:
            stop = StopReason.LENGTH
    return Speculation(
        token_ids=answer,
        num_kept=len(answer) - num_replaced,
        num_replaced=num_replaced,
        stop_reason=stop,
        policy_version_min=min(versions),
        policy_version_max=max(versions),
    )


def _block(draft: Completion, verdict: DraftVerdict) -> IntArray:
    """What stays of one block [1 to its length]: accepted tokens, and a replacement if one was refused."""
    num_drafted = len(draft.token_ids)
    if (verdict.replacement is None) != (verdict.num_accepted == num_drafted):
        raise ValueError(
            f"speculate: the teacher accepted {verdict.num_accepted} of {num_drafted} tokens, "
            f"replacement {verdict.replacement}; expected a replacement if and only if one is refused"
        )
    accepted = draft.token_ids[: verdict.num_accepted]
    if verdict.replacement is None:
        return accepted
    return np.append(accepted, np.int32(verdict.replacement)).astype(np.int32)


def _ends(draft: Completion, verdict: DraftVerdict) -> bool:
    """The answer's last token is an end token."""
    if verdict.replacement is None:
        return draft.stop_reason is StopReason.STOP
    return verdict.replacement_ends


def _seeds(seed: int, position: int) -> tuple[int, int]:
    """Seeds in [0, 2**31) for the draft and the verdict of the block that begins at `position`."""
    draft, verdict = np.random.SeedSequence((seed, position)).generate_state(2) >> 1
    return int(draft), int(verdict)
