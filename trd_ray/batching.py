"""From samples to one optimizer step: split over ranks and packed into micro-batches.

Pure and deterministic: the same samples in the same order give the same batch. What is left of
order after packing does not matter to the loss, which is a sum over tokens. `collate.py` makes
tensors of a micro-batch.

Axis letters: B sequences, L padded length, T response tokens, Dt teacher width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from trd_ray.token_values import TokenValues
from trd_ray.types import DeferredTarget, IntArray, TeacherHidden, TopKTargets, TrainingBatch, TrainingSample

MicroBatch = tuple[TrainingSample, ...]


def make_training_batch(
    samples: Sequence[TrainingSample], *, learner_step: int, num_ranks: int, micro_batch_tokens: int
) -> TrainingBatch:
    """Split `samples` over ranks and pack each rank's share.

    Ranks get about the same number of tokens (longest sample first, to the rank with the fewest),
    and the same number of micro-batches: short ranks end with empty ones, with which they take
    part in the others' collectives. There may be fewer samples than ranks.

    Args:
        learner_step: the step that this batch makes, from 1.
        micro_batch_tokens: most tokens of a micro-batch, padding included.

    Raises:
        ValueError: no samples; a sample without prompt or response, or without context for a teacher
            that the learner runs; targets of more than one kind.
    """
    if not samples:
        raise ValueError("make_training_batch: got no samples; expected at least one")
    for index, sample in enumerate(samples):
        _require_whole(sample, index)
    _require_one_kind(samples)
    packed = [
        pack(share, micro_batch_tokens=micro_batch_tokens) for share in split(samples, num_ranks=num_ranks)
    ]
    most = max(len(micro_batches) for micro_batches in packed)
    return TrainingBatch(
        learner_step=learner_step,
        micro_batches=tuple(micro_batches + ((),) * (most - len(micro_batches)) for micro_batches in packed),
        num_loss_tokens=sum(len(sample.response_ids) for sample in samples),
        num_trajectories=len(samples),
    )


def split(samples: Sequence[TrainingSample], *, num_ranks: int) -> tuple[MicroBatch, ...]:
    """Each rank's share of `samples`, balanced by tokens; some are empty if there are more ranks.

    Longest-processing-time rule (Graham 1969, "Bounds on multiprocessing timing anomalies"): at
    most 4/3 of the best possible largest share.

    Raises:
        ValueError: `num_ranks` below 1.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks: got {num_ranks}; expected 1 or more")
    shares: list[list[TrainingSample]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    lengths = [longest_pass(sample) for sample in samples]
    for index in _longest_first(lengths):
        rank = loads.index(min(loads))
        shares[rank].append(samples[index])
        loads[rank] += lengths[index]
    return tuple(tuple(share) for share in shares)


def pack(samples: Sequence[TrainingSample], *, micro_batch_tokens: int) -> tuple[MicroBatch, ...]:
    """Micro-batches whose padded size (sequences x longest) is at most `micro_batch_tokens`.

    Sequences of like length go together, longest first. One that is longer than the budget gets
    its own micro-batch.

    Raises:
        ValueError: `micro_batch_tokens` below 1.
    """
    groups = pack_lengths([longest_pass(sample) for sample in samples], budget=micro_batch_tokens)
    return tuple(tuple(samples[index] for index in group) for group in groups)


def longest_pass(sample: TrainingSample) -> int:
    """Tokens of the longest sequence that the learner computes for a sample.

    That of the teacher, if the learner runs it too: its context may be longer than the prompt.
    """
    if isinstance(sample.target, DeferredTarget):
        return max(sample.num_tokens, len(sample.target.context_ids) + len(sample.response_ids))
    return sample.num_tokens


def pack_lengths(lengths: Sequence[int], *, budget: int) -> tuple[tuple[int, ...], ...]:
    """`pack` for anything that has a length: groups of indices into `lengths`.

    Raises:
        ValueError: `budget` below 1.
    """
    if budget < 1:
        raise ValueError(f"token budget: got {budget}; expected 1 or more")
    groups: list[tuple[int, ...]] = []
    current: list[int] = []
    for index in _longest_first(lengths):
        if current and lengths[current[0]] * (len(current) + 1) > budget:
            groups.append(tuple(current))
            current = []
        current.append(index)
    if current:
        groups.append(tuple(current))
    return tuple(groups)


def values_by_sample(batch: TrainingBatch, values: TokenValues) -> tuple[TokenValues, ...]:
    """Each sample's values, by its `index`.

    Args:
        values: of all tokens of the batch, in its order.

    Raises:
        ValueError: other tokens than the batch has.
    """
    samples = [sample for rank in batch.micro_batches for packed in rank for sample in packed]
    parts = values.split([len(sample.response_ids) for sample in samples])
    by_index = {sample.index: part for sample, part in zip(samples, parts, strict=True)}
    return tuple(by_index[index] for index in range(len(samples)))


def part_for_rank(batch: TrainingBatch, *, rank: int) -> TrainingBatch:
    """`batch` with the samples of `rank` alone: what needs to travel to that rank.

    Raises:
        ValueError: the batch has no such rank.
    """
    if not 0 <= rank < len(batch.micro_batches):
        raise ValueError(f"rank: got {rank}; expected 0 to {len(batch.micro_batches) - 1}")
    return replace(
        batch,
        micro_batches=tuple(
            micro_batches if other == rank else ((),) * len(micro_batches)
            for other, micro_batches in enumerate(batch.micro_batches)
        ),
    )


def pad_right(sequences: Sequence[IntArray], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """input_ids [B, L] and attention_mask [B, L], int64, of token sequences of any length."""
    lengths = np.array([len(sequence) for sequence in sequences])
    input_ids = np.full((len(sequences), lengths.max()), pad_id, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
    mask = np.arange(lengths.max()) < lengths[:, None]
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))


def decode_hidden(hidden: TeacherHidden) -> Tensor:
    """[T, Dt] tensor, float32 or bfloat16, bit for bit what was sent."""
    # A copy: arrays that came through shared memory are read-only, which torch has no notion of.
    tensor = torch.from_numpy(np.array(hidden.hidden))
    return tensor.view(torch.bfloat16) if hidden.hidden.dtype == np.uint16 else tensor


def encode_hidden(hidden: Tensor) -> TeacherHidden:
    """Pack a [T, Dt] float32 or bfloat16 tensor for travel; `decode_hidden` undoes it.

    Raises:
        ValueError: another format.
    """
    if hidden.dtype == torch.bfloat16:
        return TeacherHidden(hidden=hidden.contiguous().cpu().view(torch.uint16).numpy())
    if hidden.dtype == torch.float32:
        return TeacherHidden(hidden=hidden.contiguous().cpu().numpy())
    raise ValueError(f"encode_hidden: got {hidden.dtype}; expected torch.float32 or torch.bfloat16")


def _longest_first(lengths: Sequence[int]) -> list[int]:
    # Python's sort is stable: equal lengths keep their order.
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _require_whole(sample: TrainingSample, index: int) -> None:
    if len(sample.prompt_ids) == 0 or len(sample.response_ids) == 0:
        raise ValueError(
            f"make_training_batch: sample {index} has {len(sample.prompt_ids)} prompt and "
            f"{len(sample.response_ids)} response tokens; expected at least one of each"
        )
    if isinstance(sample.target, DeferredTarget) and len(sample.target.context_ids) == 0:
        raise ValueError(
            f"make_training_batch: sample {index} has 0 teacher context tokens; expected at least one"
        )


def _require_one_kind(samples: Sequence[TrainingSample]) -> None:
    kinds = {target_words(sample) for sample in samples}
    if len(kinds) > 1:
        raise ValueError(
            f"make_training_batch: samples have targets of several kinds, {' and '.join(sorted(kinds))}; "
            "expected one kind in a step"
        )


def target_words(sample: TrainingSample) -> str:
    """The kind of a sample's target, for an error."""
    if sample.target is None:
        return "no target"
    if isinstance(sample.target, TopKTargets):
        return f"TopKTargets of K = {sample.target.topk_ids.shape[1]}"
    return type(sample.target).__name__
