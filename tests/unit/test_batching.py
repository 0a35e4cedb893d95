"""Packing, splitting and collating: nothing is lost or doubled, and masks come from lengths."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.training_samples import deferred, make_sample, make_samples, rewarded, with_topk
from trd_ray.batching import (
    decode_hidden,
    encode_hidden,
    make_training_batch,
    pack,
    part_for_rank,
    split,
)
from trd_ray.choices import Normalization
from trd_ray.collate import MicroBatchTensors, TokenWeights
from trd_ray.collate import collate as collate_for
from trd_ray.objective_options import ObjectiveNeeds, TargetKind
from trd_ray.types import TeacherHidden, TrainingBatch, TrainingSample

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=1, max_size=20)


HIDDEN = ObjectiveNeeds(target=TargetKind.HIDDEN, top_k=0, rollout_logprobs=False, advantages=False)
BY_TOKEN = TokenWeights(normalization=Normalization.TOKEN, num_loss_tokens=10, num_trajectories=4)


def collate(
    micro_batch: tuple[TrainingSample, ...],
    *,
    pad_id: int = 0,
    hidden_width: int = 4,
    needs: ObjectiveNeeds = HIDDEN,
    weights: TokenWeights = BY_TOKEN,
) -> MicroBatchTensors:
    return collate_for(micro_batch, pad_id=pad_id, needs=needs, hidden_width=hidden_width, weights=weights)


def all_samples(batch: TrainingBatch) -> list[TrainingSample]:
    return list(chain.from_iterable(chain.from_iterable(batch.micro_batches)))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, num_ranks=st.integers(1, 6), micro_batch_tokens=st.integers(1, 80))
def test_nothing_is_lost_or_doubled_and_budgets_hold(
    lengths: list[tuple[int, int]], num_ranks: int, micro_batch_tokens: int
) -> None:
    samples = make_samples(lengths)
    batch = make_training_batch(
        samples, learner_step=3, num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens
    )
    assert Counter(map(id, all_samples(batch))) == Counter(map(id, samples))
    assert batch.learner_step == 3
    assert batch.num_loss_tokens == sum(num_response for _, num_response in lengths)
    assert len(batch.micro_batches) == num_ranks
    assert len({len(micro_batches) for micro_batches in batch.micro_batches}) == 1
    assert any(batch.micro_batches[rank][-1] for rank in range(num_ranks)), "no round is empty on every rank"
    for micro_batches in batch.micro_batches:
        filled = [bool(micro_batch) for micro_batch in micro_batches]
        assert filled == sorted(filled, reverse=True), "empty micro-batches come last"
        for micro_batch in filter(None, micro_batches):
            size = len(micro_batch) * max(sample.num_tokens for sample in micro_batch)
            assert size <= micro_batch_tokens or len(micro_batch) == 1


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, num_ranks=st.integers(1, 6))
def test_no_rank_has_more_than_the_mean_and_one_sample(
    lengths: list[tuple[int, int]], num_ranks: int
) -> None:
    shares = split(make_samples(lengths), num_ranks=num_ranks)
    loads = [sum(sample.num_tokens for sample in share) for share in shares]
    longest = max(num_prompt + num_response for num_prompt, num_response in lengths)
    assert max(loads) <= sum(loads) / num_ranks + longest


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS)
def test_collate_places_every_token_and_every_target(lengths: list[tuple[int, int]]) -> None:
    samples = tuple(make_samples(lengths))
    tensors = collate(samples, pad_id=7, hidden_width=4)
    width = max(num_prompt + num_response - 1 for num_prompt, num_response in lengths)
    assert tensors.student.input_ids.shape == tensors.student.attention_mask.shape == (len(samples), width)
    flat = tensors.student.input_ids.flatten()
    start = 0
    for row, sample in enumerate(samples):
        tokens = np.concatenate([sample.prompt_ids, sample.response_ids])
        num = len(sample.response_ids)
        length = len(tokens) - 1
        assert tensors.student.input_ids[row, :length].tolist() == tokens[:-1].tolist()
        assert tensors.student.attention_mask[row].tolist() == [1] * length + [0] * (width - length)
        positions = tensors.student.positions[start : start + num]
        # The state at the last prompt token predicts the first response token, and so on.
        assert flat[positions].tolist() == tokens[len(sample.prompt_ids) - 1 : -1].tolist()
        assert tensors.tokens.target_ids[start : start + num].tolist() == sample.response_ids.tolist()
        hidden = tensors.teacher_hidden[start : start + num].numpy()
        np.testing.assert_array_equal(hidden, sample.target.hidden)
        start += num
    assert start == len(tensors.student.positions) == len(tensors.teacher_hidden)


def test_deterministic() -> None:
    samples = make_samples([(2, 5), (3, 4), (1, 6), (4, 9)])
    first, second = (
        make_training_batch(samples, learner_step=1, num_ranks=2, micro_batch_tokens=12) for _ in range(2)
    )
    assert list(map(id, all_samples(first))) == list(map(id, all_samples(second)))


def test_a_sample_above_the_budget_stands_alone() -> None:
    long, short, other = make_samples([(5, 50), (2, 3), (2, 3)])
    assert pack([short, long, other], micro_batch_tokens=10) == ((long,), (short, other))


def test_fewer_samples_than_ranks() -> None:
    batch = make_training_batch(make_samples([(2, 3)]), learner_step=1, num_ranks=3, micro_batch_tokens=100)
    assert [list(map(len, micro_batches)) for micro_batches in batch.micro_batches] == [[1], [0], [0]]


def test_a_part_holds_one_rank_and_the_shape_of_the_whole() -> None:
    batch = make_training_batch(
        make_samples([(2, 3)] * 5), learner_step=1, num_ranks=2, micro_batch_tokens=10
    )
    part = part_for_rank(batch, rank=1)
    assert part.micro_batches[1] == batch.micro_batches[1]
    assert part.micro_batches[0] == ((),) * len(batch.micro_batches[0])
    assert part.num_loss_tokens == batch.num_loss_tokens
    with pytest.raises(ValueError, match="rank: got 2; expected 0 to 1"):
        part_for_rank(batch, rank=2)


def test_a_mask_from_ids_would_drop_a_real_token() -> None:
    sample = make_sample(num_prompt=3, num_response=4)
    pad_id = int(sample.prompt_ids[1])
    assert collate((sample,), pad_id=pad_id, hidden_width=4).student.attention_mask.tolist() == [[1] * 6]


def test_empty_micro_batch_is_one_token_without_loss() -> None:
    tensors = collate((), pad_id=9, hidden_width=4)
    assert tensors.student.input_ids.tolist() == [[9]]
    assert tensors.student.attention_mask.tolist() == [[1]]
    assert tensors.student.positions.shape == (0,)
    assert tensors.teacher_hidden.shape == (0, 4)


def test_bfloat16_bits_survive_the_journey() -> None:
    hidden = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    sent = encode_hidden(hidden)
    assert sent.hidden.dtype == np.uint16
    assert torch.equal(decode_hidden(sent), hidden)
    read_only = np.array(sent.hidden)
    read_only.flags.writeable = False
    assert torch.equal(decode_hidden(TeacherHidden(hidden=read_only)), hidden)
    assert torch.equal(decode_hidden(encode_hidden(hidden.float())), hidden.float())
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        encode_hidden(hidden.double())


def test_mixed_formats_become_float32() -> None:
    sample = make_sample(num_prompt=1, num_response=2)
    half = TrainingSample(
        prompt_ids=sample.prompt_ids,
        response_ids=sample.response_ids,
        target=encode_hidden(torch.ones(2, 4, dtype=torch.bfloat16)),
    )
    assert collate((half,), pad_id=0, hidden_width=4).teacher_hidden.dtype == torch.bfloat16
    assert collate((half, sample), pad_id=0, hidden_width=4).teacher_hidden.dtype == torch.float32


def test_broken_samples_are_refused() -> None:
    def batch_of(sample: TrainingSample) -> TrainingBatch:
        return make_training_batch([sample], learner_step=1, num_ranks=1, micro_batch_tokens=10)

    with pytest.raises(ValueError, match="no samples"):
        make_training_batch([], learner_step=1, num_ranks=1, micro_batch_tokens=10)
    with pytest.raises(ValueError, match="sample 0 has 0 prompt and 2 response tokens"):
        batch_of(make_sample(num_prompt=0, num_response=2))
    with pytest.raises(ValueError, match="sample 0 has 2 prompt and 0 response tokens"):
        batch_of(make_sample(num_prompt=2, num_response=0))
    whole = make_sample(num_prompt=2, num_response=3)
    short = TeacherHidden(hidden=whole.target.hidden[:2])
    with pytest.raises(ValueError, match="TeacherHidden has 2 positions for 3 tokens"):
        batch_of(
            TrainingSample(
                prompt_ids=whole.prompt_ids,
                response_ids=whole.response_ids,
                target=short,
            )
        )
    with pytest.raises(ValueError, match="width 4; expected the teacher's, 8"):
        collate((whole,), pad_id=0, hidden_width=8)
    with pytest.raises(ValueError, match="num_ranks: got 0"):
        split([whole], num_ranks=0)
    with pytest.raises(ValueError, match="token budget: got 0"):
        pack([whole], micro_batch_tokens=0)


def test_weights_by_hand() -> None:
    # Responses of 2 and 3 tokens among 4 trajectories with 10 response tokens in all.
    samples = tuple(make_samples([(2, 2), (1, 3)]))
    assert collate(samples).tokens.weights.tolist() == pytest.approx([1 / 10] * 5)
    by_trajectory = TokenWeights(
        normalization=Normalization.TRAJECTORY, num_loss_tokens=10, num_trajectories=4, factor=2.0
    )
    expected = [2 / (4 * 2)] * 2 + [2 / (4 * 3)] * 3
    tensors = collate(samples, weights=by_trajectory)
    assert tensors.tokens.weights.tolist() == pytest.approx(expected)
    assert tensors.share_of_sample.tolist() == pytest.approx([1 / 2] * 2 + [1 / 3] * 3)


def test_topk_targets_are_stacked_and_cut_to_what_the_method_uses() -> None:
    needs = replace(HIDDEN, target=TargetKind.TOP_K, top_k=3)
    samples = tuple(with_topk(s, top_k=5, vocab_size=100) for s in make_samples([(2, 2), (1, 3)]))
    topk = collate(samples, needs=needs).topk
    expected = np.concatenate([sample.target.topk_ids[:, :3] for sample in samples])
    assert topk.topk_ids.tolist() == expected.tolist()
    assert topk.topk_ids.dtype == torch.int64
    assert topk.topk_logprobs.shape == (5, 3)
    own = np.concatenate([sample.target.token_logprobs for sample in samples])
    assert topk.token_logprobs.tolist() == own.tolist()
    empty = collate((), needs=needs).topk
    assert (empty.topk_ids.shape, empty.token_logprobs.shape) == ((0, 3), (0,))
    with pytest.raises(ValueError, match="TopKTargets of K = 5; expected TopKTargets of K = 6 or more"):
        collate(samples, needs=replace(needs, top_k=6))


def test_a_deferred_target_gives_the_teacher_its_own_sequence() -> None:
    needs = replace(HIDDEN, target=TargetKind.DEFERRED)
    first, second = make_samples([(2, 2), (1, 3)])
    contexts = [np.arange(50, 55, dtype=np.int32), np.arange(60, 61, dtype=np.int32)]
    tensors = collate((deferred(first, contexts[0]), deferred(second, contexts[1])), pad_id=9, needs=needs)
    read = tensors.teacher_input
    assert read.input_ids.tolist() == [
        [50, 51, 52, 53, 54, first.response_ids[0]],
        [60, *second.response_ids[:2], 9, 9, 9],
    ]
    assert read.attention_mask.tolist() == [[1] * 6, [1] * 3 + [0] * 3]
    # The last context token predicts the first response token, in rows of width 6.
    assert read.positions.tolist() == [4, 5, 6, 7, 8]
    empty = collate((), pad_id=9, needs=needs)
    assert empty.teacher_input.input_ids.tolist() == [[9]]
    assert len(empty.teacher_input.positions) == 0


def test_the_teacher_s_longer_sequence_counts_for_the_budget() -> None:
    short = make_samples([(2, 3)] * 2)
    samples = [deferred(sample, np.arange(20, dtype=np.int32)) for sample in short]
    assert len(pack(short, micro_batch_tokens=30)) == 1
    assert len(pack(samples, micro_batch_tokens=30)) == 2
    assert len(pack(samples, micro_batch_tokens=46)) == 1


def test_what_a_method_needs_is_asked_of_every_sample() -> None:
    needs = ObjectiveNeeds(target=TargetKind.NONE, top_k=0, rollout_logprobs=True, advantages=True)
    plain = make_sample(num_prompt=2, num_response=3)
    first, second = rewarded(plain, seed=0), rewarded(make_sample(num_prompt=1, num_response=1), seed=1)
    tokens = collate((first, second), needs=needs).tokens
    assert tokens.advantages.tolist() == pytest.approx([first.advantage] * 3 + [second.advantage])
    assert tokens.rollout_logprobs.tolist() == [*first.rollout_logprobs, *second.rollout_logprobs]
    with pytest.raises(ValueError, match="a sample has TeacherHidden; expected no target"):
        collate((plain,), needs=needs)
    with pytest.raises(ValueError, match="no rollout_logprobs"):
        collate((replace(first, rollout_logprobs=None),), needs=needs)
    assert collate((plain,)).tokens.rollout_logprobs is None


def test_one_kind_of_target_a_step() -> None:
    hidden = make_sample(num_prompt=2, num_response=3)
    four, five = (with_topk(hidden, top_k=k, vocab_size=100) for k in (4, 5))

    def batch_of(*samples: TrainingSample) -> TrainingBatch:
        return make_training_batch(samples, learner_step=1, num_ranks=1, micro_batch_tokens=10)

    with pytest.raises(ValueError, match="several kinds, TeacherHidden and TopKTargets of K = 4;"):
        batch_of(four, hidden)
    with pytest.raises(ValueError, match="several kinds, TopKTargets of K = 4 and TopKTargets of K = 5;"):
        batch_of(four, five)
    with pytest.raises(ValueError, match="sample 0 has 0 teacher context tokens"):
        batch_of(deferred(hidden, np.zeros(0, dtype=np.int32)))
