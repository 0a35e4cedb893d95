"""The memory plan by hand, and that it follows the method."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trd_ray.choices import (
    Device,
    Divergence,
    DType,
    ScoreMethod,
    SyncBackend,
    TeacherWeights,
)
from trd_ray.config import (
    EngineConfig,
    GeneratorConfig,
    LearnerConfig,
    LoraConfig,
    MethodConfig,
    ResourceConfig,
    TeacherConfig,
    TrdConfig,
    WeightSyncConfig,
)
from trd_ray.memory_plan import learner_parts, memory_plan
from trd_ray.planned_models import planned_facts
from trd_ray.types import TeacherContext, TrajectorySource

QWEN_17B, QWEN_8B = planned_facts("Qwen/Qwen3-1.7B"), planned_facts("Qwen/Qwen3-8B")


@pytest.mark.parametrize(("stage", "weights", "gradients"), [(1, 1, 1), (2, 1, 2), (3, 2, 2)])
def test_zero_shards_over_two_ranks(stage: int, weights: int, gradients: int):
    parts = learner_parts(LearnerConfig(num_ranks=2, zero_stage=stage), QWEN_17B)
    # 1,720,574,976 parameters x 4 bytes; two float32 moments.
    whole = 1_720_574_976 * 4
    assert parts["weights"] == whole // weights
    assert parts["gradients"] == whole // gradients
    assert parts["optimizer"] == 2 * whole // 2


def test_adapters_alone_have_gradients_and_states():
    learner = LearnerConfig(dtype=DType.BFLOAT16, lora=LoraConfig(rank=64))
    parts = learner_parts(learner, QWEN_17B)
    # About 64 x 20 x 2048 x 28 = 73.4 million adapter weights, in float32.
    adapters = 64 * 20 * 2048 * 28
    assert parts["weights"] == QWEN_17B.num_parameters * 2
    assert parts["gradients"] == adapters * 4
    assert parts["optimizer"] == adapters * 4 * 3


def plan(method: MethodConfig, **teacher: object) -> dict[str, dict[str, int]]:
    config = TrdConfig(method=method, teacher=replace(TeacherConfig(), **teacher))  # type: ignore[arg-type]
    return {role.role: role.parts for role in memory_plan(config, student=QWEN_17B, teacher=QWEN_8B)}


def test_roles_hold_what_the_method_needs():
    refined = plan(MethodConfig())
    assert set(refined["teacher"]) == {
        "scorer weights",
        "scorer activations (about)",
        "engine weights",
        "KV cache",
    }
    assert refined["learner"]["teacher head"] == 151_936 * 4096 * 4
    rollout = MethodConfig(trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT)
    assert set(plan(rollout)["teacher"]) == {"scorer weights", "scorer activations (about)"}
    by_learner = plan(replace(rollout, teacher_weights=TeacherWeights.INITIAL), score=ScoreMethod.LEARNER)
    assert "teacher" not in by_learner
    assert by_learner["learner"]["teacher weights"] == QWEN_8B.num_parameters * 4
    sft = plan(replace(rollout, trajectory=TrajectorySource.REFERENCE, divergence=Divergence.NLL))
    assert set(sft) == {"learner", "generator"}
    assert not any("teacher" in part for part in sft["learner"])


def test_vllm_fills_a_gpu_itself():
    engine = EngineConfig(device=Device.CUDA, tensor_parallel_size=2)
    config = TrdConfig(
        generator=GeneratorConfig(engine=engine, resources=ResourceConfig(gpus=2)),
        learner=LearnerConfig(device=Device.CUDA, resources=ResourceConfig(gpus=1)),
        weight_sync=WeightSyncConfig(backend=SyncBackend.NCCL),
    )
    roles = {role.role: role.parts for role in memory_plan(config, student=QWEN_17B, teacher=QWEN_8B)}
    assert roles["generator"] == {"engine weights": QWEN_17B.num_parameters * 4 // 2}
