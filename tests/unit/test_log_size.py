"""The size of the log by hand, and against what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.trajectory_records import trajectory
from trd_ray.buffer_log import BufferLog
from trd_ray.choices import Divergence, DType, ScoreMethod, Support
from trd_ray.config import MethodConfig, PipelineConfig, SamplingConfig, TeacherConfig, TrdConfig
from trd_ray.log_size import log_bytes_per_step, target_bytes_per_token
from trd_ray.planned_models import planned_facts
from trd_ray.types import TeacherHidden, TopKTargets, TrajectorySource

QWEN_8B = planned_facts("Qwen/Qwen3-8B")
"""Hidden width 4096; 151,936 tokens need 18 bits."""
TOP_K = MethodConfig(support=Support.TOP_K, top_k=64)


def config(method: MethodConfig, **teacher: object) -> TrdConfig:
    return TrdConfig(method=method, teacher=replace(TeacherConfig(), **teacher))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "teacher", "expected"),
    [
        (MethodConfig(), {"hidden_dtype": DType.BFLOAT16}, 4096 * 2),
        (MethodConfig(), {"hidden_dtype": DType.FLOAT32}, 4096 * 4),
        # 64 ids of 18 bits and float16 logprobs, and the token's own in float32.
        (TOP_K, {"score": ScoreMethod.FUSED}, 64 * (2 + 18 / 8) + 4),
        (MethodConfig(), {"score": ScoreMethod.LEARNER}, 0),
        (MethodConfig(trajectory=TrajectorySource.TEACHER, divergence=Divergence.NLL), {}, 0),
    ],
)
def test_bytes_of_a_target_follow_the_way_of_scoring(method: MethodConfig, teacher, expected: float):
    assert target_bytes_per_token(config(method, **teacher), teacher=QWEN_8B) == expected


def test_a_step_is_the_product_of_its_parts():
    small = replace(
        config(MethodConfig(), sampling=SamplingConfig(max_tokens=100)),
        pipeline=PipelineConfig(prompts_per_step=3, rollouts_per_prompt=2),
    )
    # 6 trajectories of at most 100 tokens, each 4096 float32; 512 ids of the student's sequence, twice 512 of
    # the teacher's, 100 of the trajectory, at 18 bits; logprobs of 64 rollout and 100 refinement tokens.
    each = 100 * 4096 * 4 + (3 * 512 + 100) * 18 / 8 + (64 + 100) * 4
    assert log_bytes_per_step(small, teacher=QWEN_8B) == round(6 * each)


def test_without_a_log_there_are_no_bytes():
    silent = replace(TrdConfig(), pipeline=PipelineConfig(log_targets=False))
    assert log_bytes_per_step(silent, teacher=QWEN_8B) == 0


@pytest.mark.parametrize("score", [ScoreMethod.HIDDEN, ScoreMethod.FUSED])
def test_what_is_written_is_about_what_was_said(tmp_path: Path, score: ScoreMethod):
    rng = np.random.default_rng(0)
    num = 2_000
    if score is ScoreMethod.HIDDEN:
        method = MethodConfig()
        target = TeacherHidden(hidden=rng.normal(size=(num, QWEN_8B.hidden_width)).astype(np.float32))
    else:
        method = TOP_K
        target = TopKTargets(
            topk_ids=rng.integers(0, QWEN_8B.vocab_size, (num, 64)).astype(np.int32),
            topk_logprobs=-rng.exponential(size=(num, 64)).astype(np.float16),
            token_logprobs=-rng.exponential(size=num).astype(np.float32),
        )
    record = replace(trajectory(correct=True, text="x" * num), target=target)
    size = Path(BufferLog(str(tmp_path)).write_step([record], learner_step=1)).stat().st_size
    said = num * target_bytes_per_token(config(method, score=score), teacher=QWEN_8B)
    assert 0.75 * said < size < 1.05 * said
