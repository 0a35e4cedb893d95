"""What the learner found at each token ends at the right token of the right trajectory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.unit.trajectory_records import ints, refined, trajectory
from trd_ray.batching import values_by_sample
from trd_ray.config import LearnerConfig, MethodConfig
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.recorder import Recorder
from trd_ray.run_folder import RunFolder
from trd_ray.step_batch import step_batch
from trd_ray.token_values import TokenValues, join_ranks
from trd_ray.trajectory_log import read_trajectories
from trd_ray.types import DeferredTarget, Trajectory


def values(*numbers: float) -> TokenValues:
    half = np.array(numbers, dtype=np.float16)
    return TokenValues(divergence=half, student_logprobs=-half)


def scored(text: str) -> Trajectory:
    return dataclasses.replace(
        trajectory(correct=True, text=text), target=DeferredTarget(context_ids=ints(1))
    )


async def test_rows_get_the_values_of_their_own_tokens_however_they_were_packed(tmp_path: Path) -> None:
    rejected = refined("zz", "", gate_reason=RejectReason.EMPTY)
    assert rejected.outcome is Outcome.REJECTED
    ended = [scored("abc"), scored("a longer answer"), rejected, scored("x"), scored("middle")]
    consumed = [t for t in ended if t.outcome is Outcome.CONSUMED]
    batch = step_batch(
        consumed,
        learner_step=1,
        method=MethodConfig(),
        learner=LearnerConfig(num_ranks=2, micro_batch_tokens=12),
    )
    # Each token's "divergence" says which token it is; in the order of the batch.
    packed = [s for rank in batch.micro_batches for micro_batch in rank for s in micro_batch]
    assert [s.index for s in packed] != sorted(s.index for s in packed), "nothing was permuted"
    found = values(*np.concatenate([s.response_ids for s in packed]))
    recorder = Recorder(RunFolder(tmp_path), keep_checkpoints=1)
    await recorder.trajectories(ended, learner_step=1)
    await recorder.token_values(ended, batch, found)
    rows = list(read_trajectories(RunFolder(tmp_path).trajectories))
    assert [row.trajectory_divergence is None for row in rows] == [False, False, True, False, False]
    for row in rows:
        if row.trajectory_divergence is not None:
            assert row.trajectory_divergence.tolist() == row.trajectory_token_ids.tolist()
            assert row.trajectory_student_logprobs.tolist() == (-row.trajectory_token_ids).tolist()
    with pytest.raises(ValueError, match="1 tokens for samples of"):
        values_by_sample(batch, values(1.0))


def test_ranks_are_joined_in_order() -> None:
    joined = join_ranks([values(1, 2), values(), values(3)])
    assert joined is not None
    assert joined.divergence.tolist() == [1, 2, 3]
    assert join_ranks([None, None]) is None


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="one and the same"):
        TokenValues(divergence=np.zeros(2, np.float16), student_logprobs=np.zeros(3, np.float16))
    assert [p.divergence.tolist() for p in values(1, 2, 3).split([2, 0, 1])] == [[1, 2], [], [3]]
