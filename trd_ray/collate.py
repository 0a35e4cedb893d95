"""One micro-batch as tensors: what the student reads, what the teacher's side is, what each token weighs.

Axis letters: B sequences, L padded length, N loss tokens, Dt teacher width, K tokens of a `top_k` target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trd_ray.batching import MicroBatch, decode_hidden, pad_right, target_words
from trd_ray.choices import Normalization
from trd_ray.losses.objective import TokenBatch, TopKTeacher
from trd_ray.objective_options import ObjectiveNeeds, TargetKind
from trd_ray.types import (
    DeferredTarget,
    FloatArray,
    IntArray,
    TeacherHidden,
    TopKTargets,
    TrainingBatch,
    TrainingSample,
)

_Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceTensors:
    """Token sequences padded on the right, and where in them the loss tokens are predicted."""

    input_ids: Tensor
    """[B, L] int64. The last response token of a sequence is left out: it predicts nothing."""
    attention_mask: Tensor
    """[B, L] int64, 1 for a token and 0 for padding; from lengths, never from ids."""
    positions: Tensor
    """[N] int64 into the flattened [B * L]: those whose output predicts a response token."""

    def to(self, device: torch.device) -> SequenceTensors:
        return SequenceTensors(
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            positions=self.positions.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatchTensors:
    """One micro-batch."""

    student: SequenceTensors
    """Prompt and response, as the student reads them."""
    tokens: TokenBatch
    """[N] response tokens with their weights in the loss."""
    share_of_sample: Tensor
    """[N] float32: 1 / the length of the response that a token belongs to."""
    teacher_hidden: Tensor | None = None
    """[N, Dt] float32, or bfloat16 if all samples came in it."""
    topk: TopKTeacher | None = None
    """[N, K]."""
    teacher_input: SequenceTensors | None = None
    """Context and response, as a teacher that the learner runs reads them."""

    def to(self, device: torch.device) -> MicroBatchTensors:
        tokens, topk, hidden = self.tokens, self.topk, self.teacher_hidden
        return MicroBatchTensors(
            student=self.student.to(device),
            tokens=TokenBatch(
                target_ids=tokens.target_ids.to(device),
                weights=tokens.weights.to(device),
                rollout_logprobs=_moved(tokens.rollout_logprobs, device),
                advantages=_moved(tokens.advantages, device),
            ),
            share_of_sample=self.share_of_sample.to(device),
            teacher_hidden=_moved(hidden, device),
            topk=None
            if topk is None
            else TopKTeacher(
                topk_ids=topk.topk_ids.to(device),
                topk_logprobs=topk.topk_logprobs.to(device),
                token_logprobs=topk.token_logprobs.to(device),
            ),
            teacher_input=None if self.teacher_input is None else self.teacher_input.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenWeights:
    """How much a token weighs in the loss of a step.

    `token`: 1 / num_loss_tokens. `trajectory`: 1 / (num_trajectories * length of its response). Both
    counts are of the whole step over all ranks, so that the loss does not depend on how the samples
    were split.
    """

    normalization: Normalization
    num_loss_tokens: int
    num_trajectories: int
    factor: float = 1.0
    """Multiplies every weight."""

    @classmethod
    def of(cls, batch: TrainingBatch, normalization: Normalization, *, factor: float = 1.0) -> TokenWeights:
        return cls(
            normalization=normalization,
            num_loss_tokens=batch.num_loss_tokens,
            num_trajectories=batch.num_trajectories,
            factor=factor,
        )

    def weight(self, num_response: int) -> float:
        """Weight of each token of a response of `num_response` tokens."""
        if self.normalization is Normalization.TOKEN:
            return self.factor / self.num_loss_tokens
        return self.factor / (self.num_trajectories * num_response)


def collate(
    micro_batch: MicroBatch, *, pad_id: int, needs: ObjectiveNeeds, hidden_width: int, weights: TokenWeights
) -> MicroBatchTensors:
    """Pad a micro-batch into tensors.

    An empty one becomes one padding token without loss tokens, for the student and for a teacher
    that the learner runs, so that the models still run and every rank makes the same collective
    calls.

    Args:
        pad_id: fills the padding; any id, since masks come from lengths.
        hidden_width: Dt, the teacher's width; used for hidden states that come with the samples.

    Raises:
        ValueError: a sample lacks what the method needs, has a target of another kind, or hidden
            states of another width.
    """
    for sample in micro_batch:
        require_needed(sample, needs)
    lengths = [len(sample.response_ids) for sample in micro_batch]
    target_ids = _concatenate([sample.response_ids.astype(np.int64) for sample in micro_batch])
    return MicroBatchTensors(
        student=_sequences([sample.prompt_ids for sample in micro_batch], micro_batch, pad_id=pad_id),
        tokens=TokenBatch(
            target_ids=torch.from_numpy(target_ids),
            weights=_repeated([weights.weight(length) for length in lengths], lengths),
            rollout_logprobs=_rollout_logprobs(micro_batch) if needs.rollout_logprobs else None,
            advantages=_repeated([s.advantage for s in micro_batch], lengths) if needs.advantages else None,
        ),
        share_of_sample=_repeated([1.0 / length for length in lengths], lengths),
        teacher_hidden=_stack_hidden(micro_batch, width=hidden_width)
        if needs.target is TargetKind.HIDDEN
        else None,
        topk=_stack_topk(micro_batch, top_k=needs.top_k) if needs.target is TargetKind.TOP_K else None,
        teacher_input=_teacher_sequences(micro_batch, pad_id=pad_id)
        if needs.target is TargetKind.DEFERRED
        else None,
    )


def _sequences(contexts: Sequence[IntArray], micro_batch: MicroBatch, *, pad_id: int) -> SequenceTensors:
    """Each context with its sample's response."""
    inputs = [
        np.concatenate([context, sample.response_ids[:-1]])
        for context, sample in zip(contexts, micro_batch, strict=True)
    ]
    input_ids, attention_mask = pad_right(inputs or [np.array([pad_id], dtype=np.int32)], pad_id=pad_id)
    width = input_ids.shape[1]
    positions = [
        row * width + np.arange(len(context) - 1, len(tokens), dtype=np.int64)
        for row, (context, tokens) in enumerate(zip(contexts, inputs, strict=True))
    ]
    return SequenceTensors(
        input_ids=input_ids,
        attention_mask=attention_mask,
        positions=torch.from_numpy(_concatenate(positions)),
    )


def _teacher_sequences(micro_batch: MicroBatch, *, pad_id: int) -> SequenceTensors:
    contexts = [s.target.context_ids for s in micro_batch if isinstance(s.target, DeferredTarget)]
    return _sequences(contexts, micro_batch, pad_id=pad_id)


def _stack_hidden(micro_batch: MicroBatch, *, width: int) -> Tensor:
    hidden = [s.target for s in micro_batch if isinstance(s.target, TeacherHidden)]
    for item in hidden:
        if item.hidden.shape[1] != width:
            raise ValueError(
                f"collate: teacher hidden states have width {item.hidden.shape[1]}; "
                f"expected the teacher's, {width}"
            )
    if not hidden:
        return torch.zeros(0, width)
    return torch.cat([decode_hidden(item) for item in hidden])


def _stack_topk(micro_batch: MicroBatch, *, top_k: int) -> TopKTeacher:
    topk = [s.target for s in micro_batch if isinstance(s.target, TopKTargets)]
    none = np.zeros((0, top_k), dtype=np.float32)
    # The most likely come first: a target that holds more tokens than are asked for is cut.
    ids = np.concatenate([none.astype(np.int32), *(item.topk_ids[:, :top_k] for item in topk)])
    logprobs = np.concatenate([none, *(item.topk_logprobs[:, :top_k] for item in topk)])
    own = np.concatenate([np.zeros(0, dtype=np.float32), *(item.token_logprobs for item in topk)])
    return TopKTeacher(
        topk_ids=torch.from_numpy(ids.astype(np.int64)),
        topk_logprobs=torch.from_numpy(logprobs),
        token_logprobs=torch.from_numpy(own),
    )


def _rollout_logprobs(micro_batch: MicroBatch) -> Tensor:
    parts: list[FloatArray] = [np.zeros(0, dtype=np.float32)]
    parts += [s.rollout_logprobs for s in micro_batch if s.rollout_logprobs is not None]
    return torch.from_numpy(np.concatenate(parts))


def require_needed(sample: TrainingSample, needs: ObjectiveNeeds) -> None:
    """Raise `ValueError` if a sample lacks what a method needs of it."""
    kinds = {
        TargetKind.NONE: type(None),
        TargetKind.HIDDEN: TeacherHidden,
        TargetKind.TOP_K: TopKTargets,
        TargetKind.DEFERRED: DeferredTarget,
    }
    few = isinstance(sample.target, TopKTargets) and sample.target.topk_ids.shape[1] < needs.top_k
    if few or not isinstance(sample.target, kinds[needs.target]):
        enough = f" of K = {needs.top_k} or more" if needs.target is TargetKind.TOP_K else ""
        raise ValueError(
            f"collate: a sample has {target_words(sample)}; expected {needs.target.value}{enough} for this "
            "method"
        )
    if needs.rollout_logprobs and sample.rollout_logprobs is None:
        raise ValueError(
            "collate: a sample has no rollout_logprobs; expected one for each response token, because "
            "this method compares the student with the policy that sampled them"
        )


def _repeated(values: list[float], lengths: list[int]) -> Tensor:
    """[N] float32: each value once for each token of its sample."""
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(
        torch.tensor(lengths, dtype=torch.int64)
    )


def _concatenate(arrays: list[_Int64Array]) -> _Int64Array:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
