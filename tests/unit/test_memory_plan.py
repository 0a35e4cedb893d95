"""The memory plan by hand, and that it follows the method."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trd_ray.choices import (
    Device,
    Divergence,
    DType,
    PlacementMode,
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
    PlacementConfig,
    ResourceConfig,
    TeacherConfig,
    TrdConfig,
    WeightSyncConfig,
)
from trd_ray.kv_cache import kv_room
from trd_ray.memory_checks import MemoryCheck, memory_checks
from trd_ray.memory_plan import learner_parts, memory_plan
from trd_ray.planned_models import planned_facts
from trd_ray.types import TeacherContext, TrajectorySource

QWEN_17B, QWEN_8B = planned_facts("Qwen/Qwen3-1.7B"), planned_facts("Qwen/Qwen3-8B")


@pytest.mark.parametrize(("stage", "weights", "gradients"), [(1, 1, 1), (2, 1, 2), (3, 2, 2)])
def test_zero_shards_over_two_ranks(stage: int, weights: int, gradients: int):
    parts = learner_parts(LearnerConfig(num_ranks=2, zero_stage=stage), QWEN_17B)
    # 1,720,574,976 parameters x 4 bytes; two float32 moments and DeepSpeed's own float32 weights.
    whole = 1_720_574_976 * 4
    assert parts["weights"] == whole // weights
    assert parts["gradients"] == whole // gradients
    assert parts["optimizer"] == 3 * whole // 2
    # 50 million gradients, whatever the model's size.
    assert parts["reduce bucket"] == 50_000_000 * 4


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


def test_a_push_on_one_machine_has_memory_of_its_own_in_the_engines_format():
    part = "weights shared with engines (first rank)"
    engine = EngineConfig(dtype=DType.BFLOAT16)
    config = TrdConfig(generator=GeneratorConfig(engine=engine))
    learner = memory_plan(config, student=QWEN_17B, teacher=QWEN_8B)[0]
    assert learner.parts[part] == QWEN_17B.num_parameters * 2
    sockets = replace(config, weight_sync=WeightSyncConfig(shared_memory=False))
    assert part not in memory_plan(sockets, student=QWEN_17B, teacher=QWEN_8B)[0].parts


def test_vllm_fills_a_gpu_itself():
    engine = EngineConfig(device=Device.CUDA, tensor_parallel_size=2)
    config = TrdConfig(
        generator=GeneratorConfig(engine=engine, resources=ResourceConfig(gpus=2)),
        learner=LearnerConfig(device=Device.CUDA, resources=ResourceConfig(gpus=1)),
        weight_sync=WeightSyncConfig(backend=SyncBackend.NCCL),
    )
    roles = {role.role: role.parts for role in memory_plan(config, student=QWEN_17B, teacher=QWEN_8B)}
    assert roles["generator"] == {"engine weights": QWEN_17B.num_parameters * 4 // 2}


def on_gpus(*, device_memory_gib: float = 80.0, **changes: object) -> TrdConfig:
    """Qwen3-1.7B in bfloat16 with a teacher of 8B, one GPU each."""

    def engine(share: float) -> EngineConfig:
        return EngineConfig(
            device=Device.CUDA, dtype=DType.BFLOAT16, max_model_len=40_960, gpu_memory_utilization=share
        )

    one = ResourceConfig(gpus=1, memory_gib=64)
    config = TrdConfig(
        generator=GeneratorConfig(engine=engine(0.85), resources=one),
        teacher=TeacherConfig(engine=engine(0.55), resources=one, score_dtype=DType.BFLOAT16),
        learner=LearnerConfig(device=Device.CUDA, dtype=DType.BFLOAT16, resources=one),
        weight_sync=WeightSyncConfig(backend=SyncBackend.NCCL),
        placement=PlacementConfig(device_memory_gib=device_memory_gib),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def checks(config: TrdConfig) -> list[MemoryCheck]:
    return list(memory_checks(config, memory_plan(config, student=QWEN_17B, teacher=QWEN_8B)))


def test_kv_cache_in_tokens_and_full_sequences():
    config = on_gpus()
    generator = memory_plan(config, student=QWEN_17B, teacher=QWEN_8B)[1]
    # Keys and values of 28 layers, 8 heads of 128 numbers, 2 bytes each.
    assert generator.kv.bytes_per_token == 2 * 28 * 8 * 128 * 2 == 114_688
    room = int(0.85 * 80 * 2**30) - QWEN_17B.num_parameters * 2
    assert generator.parts["KV cache"] == room
    sequences = room // 114_688 / 40_960
    assert f"{room // 114_688:,} tokens, {sequences:,.1f} sequences of 40,960" in generator.kv.words()


def test_tensor_parallel_engines_share_heads_but_hold_at_least_one():
    def per_token(size: int) -> int:
        engine = EngineConfig(tensor_parallel_size=size, dtype=DType.BFLOAT16)
        return kv_room(engine, QWEN_17B, num_bytes=None).bytes_per_token

    assert per_token(4) == per_token(1) // 4
    assert per_token(16) == per_token(8) == per_token(1) // 8


def test_a_gpu_of_unknown_memory_gets_no_verdict():
    assert checks(on_gpus(device_memory_gib=0)) == []
    assert (
        "not known"
        in memory_plan(on_gpus(device_memory_gib=0), student=QWEN_17B, teacher=QWEN_8B)[1].kv.words()
    )


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
    assert all(check.fits for check in checks(on_gpus()))
    small = checks(on_gpus(device_memory_gib=24))
    failing = [check for check in small if not check.fits]
    assert {check.role.value for check in failing} == {"learner", "teacher"}
    for check in failing:
        too_much = (check.needed - check.available) / 2**30
        assert f"does not fit, {check.needed / 2**30:,.1f} of " in check.words()
        assert f"{too_much:,.1f} GiB too much. To change: " in check.words()
    learner = next(check for check in failing if check.role.value == "learner")
    assert "learner.activation_checkpointing=true" in learner.remedy
    assert any("teacher.score_batch_tokens" in check.remedy for check in failing)


def test_an_engine_without_room_for_one_sequence_does_not_fit():
    # 3.4 GB of weights and 4.4 GiB of one sequence in 6 GiB.
    config = on_gpus(device_memory_gib=6 / 0.85)
    engine = next(check for check in checks(config) if check.role.value == "generator")
    assert not engine.fits
    assert engine.needed == QWEN_17B.num_parameters * 2 + 114_688 * 40_960


def test_activations_by_hand():
    learner = LearnerConfig(dtype=DType.BFLOAT16, micro_batch_tokens=1000)
    # Parameters outside the embedding, of one of 28 blocks.
    in_block = (1_720_574_976 - 151_936 * 2048) / 28
    # Norms 8 and queries 2.3 model widths; keys and values 3 of 8 heads of 128; 4/3 of the parameters.
    block = 4 / 3 * in_block / 2048 + (8 + 2.3) * 2048 + 3 * 8 * 128
    # The last norm and its gradient: 4 widths.
    expected = 1000 * 2 * (28 * block + 4 * 2048)
    assert learner_parts(learner, QWEN_17B)["activations (about)"] == pytest.approx(expected, abs=1)
    saving = replace(learner, activation_checkpointing=True)
    expected = 1000 * 2 * (28 * 2048 + block + 4 * 2048)
    assert learner_parts(saving, QWEN_17B)["activations (about)"] == pytest.approx(expected, abs=1)


def test_the_loss_s_chunk_by_hand():
    learner = LearnerConfig(kl_chunk_size=1024)
    # Two logits of 1,024 tokens, and 28 rows of intermediate values (4,194,304 // 151,936 + 1), in float32.
    parts = learner_parts(learner, QWEN_17B)
    assert parts["logits chunk"] == (2 * 1024 + 28) * 151_936 * 4
    assert parts["gradient of the head"] == 151_936 * 2048 * 4
    top_k = learner_parts(learner, QWEN_17B, teacher_logits=False)
    assert top_k["logits chunk"] == 1024 * 151_936 * 4
    assert "gradient of the head" not in learner_parts(LearnerConfig(lora=LoraConfig(rank=8)), QWEN_17B)


def test_on_gpus_there_are_two_buckets_and_heads_stay_as_they_are():
    on_cpu = learner_parts(LearnerConfig(dtype=DType.BFLOAT16), QWEN_17B)
    on_gpu = learner_parts(LearnerConfig(dtype=DType.BFLOAT16, device=Device.CUDA), QWEN_17B)
    assert on_gpu["reduce bucket"] == 2 * on_cpu["reduce bucket"] == 2 * 50_000_000 * 2
    assert on_cpu["head in float32"] == 151_936 * 2048 * 4
    assert "head in float32" not in on_gpu
    assert "head in float32" not in learner_parts(LearnerConfig(), QWEN_17B)


def test_hidden_states_of_a_micro_batch():
    # 8,192 tokens of 4,096 numbers in float32.
    assert plan(MethodConfig())["learner"]["hidden states of a micro-batch"] == 8192 * 4096 * 4


def test_on_a_cpu_the_actor_s_memory_is_the_limit():
    config = TrdConfig(teacher=TeacherConfig(engine=EngineConfig(kv_cache_gib=1.0)))
    student, teacher = QWEN_17B, QWEN_17B
    found = memory_checks(config, memory_plan(config, student=student, teacher=teacher))
    limits = {check.available for check in found if "resources.memory_gib" in check.what}
    assert limits == {2 * 2**30}
    assert not any(check.fits for check in found if "resources.memory_gib" in check.what)


def test_colocated_roles_leave_room_for_what_sleepers_keep_and_need_host_memory():
    alone = on_gpus()
    shared = replace(
        alone,
        placement=replace(alone.placement, mode=PlacementMode.COLOCATED),
        weight_sync=WeightSyncConfig(backend=SyncBackend.CPU),
        learner=replace(alone.learner, zero_stage=2),
    )
    head = 151_936 * 4096 * 2

    def on_device(config: TrdConfig, role: str) -> int:
        return next(c.needed for c in checks(config) if c.role.value == role and "on a GPU" in c.what)

    assert on_device(shared, "generator") == on_device(alone, "generator") + head
    assert on_device(shared, "learner") == on_device(alone, "learner")
    asleep = {check.role.value: check.needed for check in checks(shared) if "asleep" in check.what}
    assert asleep["teacher"] == 2 * QWEN_8B.num_parameters * 2  # engine and scorer
    assert asleep["generator"] == QWEN_17B.num_parameters * 2
    # bfloat16 weights, and three float32 copies in the optimizer.
    assert asleep["learner"] == QWEN_17B.num_parameters * (2 + 12)
