"""From samples to one optimizer step: split over ranks, packed into micro-batches, collated.

Pure and deterministic: the same samples in the same order give the same batch. What is left of
order after packing does not matter to the loss, which is a sum over tokens.

Axis letters: B sequences, L padded length, N loss tokens, Dt teacher width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trd_ray.types import IntArray, TeacherHidden, TrainingBatch, TrainingSample

MicroBatch = tuple[TrainingSample, ...]
_Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchTensors:
    """One micro-batch, padded on the right."""

    input_ids: Tensor
    """[B, L] int64. The last response token of a sequence is left out: it predicts nothing."""
    attention_mask: Tensor
    """[B, L] int64, 1 for a token and 0 for padding; from lengths, never from ids."""
    positions: Tensor
    """[N] int64 into the flattened [B * L]: those whose output predicts a response token."""
    target_ids: Tensor
    """[N] int64 response tokens that they predict."""
    teacher_hidden: Tensor
    """[N, Dt] float32, or bfloat16 if all samples came in it."""

    def to(self, device: torch.device) -> MicroBatchTensors:
        return MicroBatchTensors(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            positions=self.positions.to(device),
            target_ids=self.target_ids.to(device),
            teacher_hidden=self.teacher_hidden.to(device),
        )


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
        ValueError: no samples; a sample without prompt or response, or whose hidden states do not
            match its response.
    """
    if not samples:
        raise ValueError("make_training_batch: got no samples; expected at least one")
    for index, sample in enumerate(samples):
        _require_whole(sample, index)
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
    for index in _longest_first([sample.num_tokens for sample in samples]):
        rank = loads.index(min(loads))
        shares[rank].append(samples[index])
        loads[rank] += samples[index].num_tokens
    return tuple(tuple(share) for share in shares)


def pack(samples: Sequence[TrainingSample], *, micro_batch_tokens: int) -> tuple[MicroBatch, ...]:
    """Micro-batches whose padded size (sequences x longest) is at most `micro_batch_tokens`.

    Sequences of like length go together, longest first. One that is longer than the budget gets
    its own micro-batch.

    Raises:
        ValueError: `micro_batch_tokens` below 1.
    """
    groups = pack_lengths([sample.num_tokens for sample in samples], budget=micro_batch_tokens)
    return tuple(tuple(samples[index] for index in group) for group in groups)


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


def collate(micro_batch: MicroBatch, *, pad_id: int, hidden_width: int) -> MicroBatchTensors:
    """Pad a micro-batch into tensors.

    An empty one becomes one padding token without loss tokens, so that the model still runs and
    every rank makes the same collective calls.

    Args:
        pad_id: fills the padding; any id, since masks come from lengths.
        hidden_width: Dt, the teacher's width.

    Raises:
        ValueError: hidden states of another width.
    """
    inputs = [np.concatenate([sample.prompt_ids, sample.response_ids[:-1]]) for sample in micro_batch]
    input_ids, attention_mask = pad_right(inputs or [np.array([pad_id], dtype=np.int32)], pad_id=pad_id)
    width = input_ids.shape[1]
    positions = [
        row * width + np.arange(len(sample.prompt_ids) - 1, sample.num_tokens - 1, dtype=np.int64)
        for row, sample in enumerate(micro_batch)
    ]
    targets = [sample.response_ids.astype(np.int64) for sample in micro_batch]
    return MicroBatchTensors(
        input_ids=input_ids,
        attention_mask=attention_mask,
        positions=torch.from_numpy(_concatenate(positions)),
        target_ids=torch.from_numpy(_concatenate(targets)),
        teacher_hidden=_stack_hidden([_hidden(sample) for sample in micro_batch], width=hidden_width),
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


def _concatenate(arrays: list[_Int64Array]) -> _Int64Array:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)


def _stack_hidden(hidden: Sequence[TeacherHidden], *, width: int) -> Tensor:
    for item in hidden:
        if item.hidden.shape[1] != width:
            raise ValueError(
                f"collate: teacher hidden states have width {item.hidden.shape[1]}; "
                f"expected the teacher's, {width}"
            )
    if not hidden:
        return torch.zeros(0, width)
    return torch.cat([decode_hidden(item) for item in hidden])


def _longest_first(lengths: Sequence[int]) -> list[int]:
    # Python's sort is stable: equal lengths keep their order.
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])


def _hidden(sample: TrainingSample) -> TeacherHidden:
    if not isinstance(sample.target, TeacherHidden):
        raise ValueError(f"collate: got {type(sample.target).__name__}; expected TeacherHidden")
    return sample.target


def _require_whole(sample: TrainingSample, index: int) -> None:
    if len(sample.prompt_ids) == 0 or len(sample.response_ids) == 0:
        raise ValueError(
            f"make_training_batch: sample {index} has {len(sample.prompt_ids)} prompt and "
            f"{len(sample.response_ids)} response tokens; expected at least one of each"
        )
