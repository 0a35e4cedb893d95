"""What a teacher computed is looked at before it is learnt from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trd_ray.batching import encode_hidden
from trd_ray.targets import is_sound, with_known_ids
from trd_ray.types import DeferredTarget, TeacherHidden, TopKTargets

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("value", "sound"), [(0.0, True), (-3e38, True), (NAN, False), (INF, False), (-INF, False)]
)
def test_hidden_states_in_both_formats(dtype: torch.dtype, value: float, sound: bool):
    hidden = torch.zeros(3, 4)
    hidden[1, 2] = value
    assert is_sound(encode_hidden(hidden.to(dtype))) is sound


def topk(entry: float, token: float, dtype: type = np.float32) -> TopKTargets:
    return TopKTargets(
        topk_ids=np.zeros((1, 2), dtype=np.int32),
        topk_logprobs=np.array([[-0.1, entry]], dtype=dtype),
        token_logprobs=np.array([token], dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("target", "sound"),
    [
        (topk(-1.0, -1.0), True),
        (topk(-INF, -1.0), True),  # a probability of 0
        (topk(-INF, -1.0, np.float16), True),
        (topk(NAN, -1.0), False),
        (topk(INF, -1.0), False),
        (topk(-1.0, NAN), False),
        (topk(-1.0, -INF), False),
    ],
)
def test_topk_targets(target: TopKTargets, sound: bool):
    assert is_sound(target) is sound


def test_nothing_is_known_of_what_the_learner_will_compute():
    assert is_sound(DeferredTarget(context_ids=np.ones(1, dtype=np.int32)))
    assert is_sound(TeacherHidden(hidden=np.zeros((0, 3), dtype=np.float32)))


def test_ids_that_no_tokenizer_has_give_their_probability_to_tokens_that_are_not_listed():
    targets = TopKTargets(
        topk_ids=np.array([[0, 9, 1, 8], [3, 2, 1, 0]], dtype=np.int32),
        topk_logprobs=np.array([[-0.1, -3.0, -4.0, -5.0]] * 2, dtype=np.float32),
        token_logprobs=np.zeros(2, dtype=np.float32),
    )
    known = with_known_ids(targets, vocab_size=8)
    assert known.topk_ids.tolist() == [[0, 2, 1, 3], [3, 2, 1, 0]]
    np.testing.assert_array_equal(known.topk_logprobs, targets.topk_logprobs)
    assert with_known_ids(targets, vocab_size=10) is targets
