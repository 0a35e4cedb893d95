"""Tokens and bytes of a step, by hand, and against records that are really pickled."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.test_memory_plan import QWEN_8B, QWEN_17B, on_gpus
from trd_ray.choices import DType, ScoreMethod, Support, SyncBackend, TeacherWeights
from trd_ray.config import (
    GeneratorConfig,
    LearnerConfig,
    LoraConfig,
    MethodConfig,
    PipelineConfig,
    SamplingConfig,
    TeacherConfig,
    TrdConfig,
    WeightSyncConfig,
)
from trd_ray.cost.buffers import target_buffers
from trd_ray.cost.plan import GivenLengths
from trd_ray.cost.traffic import num_micro_batches, step_traffic
from trd_ray.cost.workload import Lengths, for_method, longest_lengths, step_work, with_means
from trd_ray.errors import ConfigError
from trd_ray.memory_plan import num_trained_parameters
from trd_ray.stage_clock import Stage
from trd_ray.types import (
    Completion,
    StopReason,
    TeacherContext,
    TeacherHidden,
    TopKTargets,
    TrainingSample,
    TrajectorySource,
)

LENGTHS = Lengths(
    prompt=100, rollout=1000, teacher_prompt=1500, refinement=400, trajectory=400, context=1500, source="test"
)
STEP = PipelineConfig(prompts_per_step=10)
TOP_K = MethodConfig(support=Support.TOP_K, top_k=64)
PRIVATE = TrdConfig(pipeline=STEP)


def flows(config: TrdConfig, lengths: Lengths = LENGTHS) -> dict[str, int]:
    return {
        flow.what: flow.num_bytes for flow in step_traffic(config, lengths, student=QWEN_17B, teacher=QWEN_8B)
    }


def test_work_of_each_stage():
    work = step_work(PRIVATE, LENGTHS)
    assert (work[Stage.ROLLOUT].written, work[Stage.ROLLOUT].read) == (10_000, 1_000)
    assert (work[Stage.REFINE].written, work[Stage.REFINE].read) == (4_000, 15_000)
    assert work[Stage.SCORE].read == 10 * (1500 + 400)
    assert work[Stage.LEARN].read == 10 * (100 + 400)
    # Fused scores take no pass; a learner that scores does a third of a training pass more.
    fused = replace(PRIVATE, method=TOP_K, teacher=TeacherConfig(score=ScoreMethod.FUSED))
    assert step_work(fused, LENGTHS)[Stage.SCORE].read == 0
    own = replace(PRIVATE, teacher=TeacherConfig(score=ScoreMethod.LEARNER))
    assert step_work(own, LENGTHS)[Stage.SCORE].read == 0
    assert step_work(own, LENGTHS)[Stage.LEARN].read == pytest.approx(10 * (500 + 1900 / 3))


def test_the_longest_and_the_given():
    config = TrdConfig(
        generator=GeneratorConfig(sampling=SamplingConfig(max_tokens=200)),
        teacher=TeacherConfig(sampling=SamplingConfig(max_tokens=100)),
    )
    most = longest_lengths(config)
    # 512 - 200 tokens of prompt; the teacher's prompt is cut to what 512 - 100 leaves.
    assert (most.prompt, most.rollout, most.refinement, most.trajectory) == (312, 200, 100, 100)
    assert most.teacher_prompt == most.context == 412
    means = with_means(config, LENGTHS, prompt=50, rollout=600)
    # 400 tokens of instructions stay what they were.
    assert means.teacher_prompt == means.context == 50 + 600 + 400
    assert means.trajectory == LENGTHS.refinement
    assert "rollout 600" in means.source
    assert with_means(config, LENGTHS) is LENGTHS
    on_rollouts = TrdConfig(
        method=MethodConfig(trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT)
    )
    assert with_means(on_rollouts, LENGTHS, rollout=77).trajectory == 77


def test_lengths_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"Lengths\.rollout"):
        replace(LENGTHS, rollout=-1)


def test_hidden_states_and_top_k_by_hand():
    hidden = flows(PRIVATE)
    # 10 trajectories x 400 tokens x 4,096 numbers x 4 bytes, and a little for 10 arrays.
    assert hidden["hidden states"] == pytest.approx(10 * 400 * 4096 * 4, rel=1e-3)
    narrow = replace(PRIVATE, teacher=TeacherConfig(hidden_dtype=DType.BFLOAT16))
    assert flows(narrow)["hidden states"] == pytest.approx(10 * 400 * 4096 * 2, rel=1e-3)
    top_k = flows(replace(PRIVATE, method=TOP_K, teacher=TeacherConfig(score=ScoreMethod.PREFILL)))
    # 64 x (2 bytes of float16 and 18 bits of an id below 151,936), and 4 bytes of the token's own.
    assert top_k["top-64 log-probabilities"] == pytest.approx(10 * 400 * (64 * (2 + 18 / 8) + 4), rel=1e-2)
    assert "trajectories to score" in top_k
    fused = flows(replace(PRIVATE, method=TOP_K, teacher=TeacherConfig(score=ScoreMethod.FUSED)))
    assert "trajectories to score" not in fused
    # What goes to the driver goes on to the learner.
    assert hidden["training batch"] > hidden["hidden states"]


def test_pushes_by_hand():
    assert flows(PRIVATE)["weights"] == QWEN_17B.num_parameters * 4
    config = on_gpus()  # bfloat16
    two = replace(config, generator=replace(config.generator, num_actors=2))
    assert flows(two)["weights"] == 2 * QWEN_17B.num_parameters * 2
    moving = MethodConfig(
        trajectory=TrajectorySource.REFINED, teacher_weights=TeacherWeights.PERIODIC, periodic_every=10,
    )  # fmt: skip
    pushed = flows(replace(PRIVATE, method=moving, teacher=TeacherConfig(score=ScoreMethod.LEARNER)))
    assert pushed["the teacher's weights, one push in 10 steps"] == QWEN_8B.num_parameters * 4 // 10


def test_gradients_between_ranks_by_hand():
    assert not any("gradients" in what for what in flows(PRIVATE))

    def sent(**options: object) -> int:
        config = replace(PRIVATE, learner=LearnerConfig(num_ranks=4, **options))  # type: ignore[arg-type]
        return flows(config)["gradients and weights (about)"]

    whole = QWEN_17B.num_parameters * 4
    # Each of 4 ranks: a reduce-scatter and an all-gather of 3/4 each; ZeRO 3 gathers once more.
    assert sent(zero_stage=2) == pytest.approx(4 * 2 * whole * 3 / 4)
    assert sent(zero_stage=3) == pytest.approx(4 * 3 * whole * 3 / 4)
    lora = LearnerConfig(lora=LoraConfig(rank=16))
    adapters = num_trained_parameters(lora, QWEN_17B) * 4
    assert sent(lora=LoraConfig(rank=16)) == pytest.approx(4 * 2 * adapters * 3 / 4)


def test_micro_batches():
    config = replace(PRIVATE, learner=LearnerConfig(num_ranks=2, micro_batch_tokens=1000))
    assert num_micro_batches(config, LENGTHS) == 3  # 10 x 500 tokens over 2 ranks of 1,000
    assert num_micro_batches(PRIVATE, LENGTHS) == 1


def test_buffers_by_hand():
    step = 10 * 400 * 4096 * 4
    buffers = {buffer.holder: buffer for buffer in target_buffers(PRIVATE, LENGTHS, teacher=QWEN_8B)}
    assert buffers["driver"].num_bytes == step
    assert buffers["object store"].num_bytes == 2 * step
    assert buffers["object store"].available == 2**30
    assert buffers["object store"].fits
    assert buffers["teacher"].num_bytes == 2 * 8192 * 4096 * 4
    ahead = replace(
        PRIVATE,
        pipeline=replace(STEP, prompts_per_step=100, max_staleness=2, stage_barrier=False),
        learner=LearnerConfig(num_ranks=4),
        weight_sync=WeightSyncConfig(backend=SyncBackend.CPU),
    )
    later = {buffer.holder: buffer for buffer in target_buffers(ahead, LENGTHS, teacher=QWEN_8B)}
    assert later["driver"].num_bytes == 3 * 10 * step
    assert later["learner rank"].num_bytes == 10 * step // 4
    assert not later["object store"].fits
    assert "ray.object_store_gib" in later["object store"].words()
    own = replace(PRIVATE, teacher=TeacherConfig(score=ScoreMethod.LEARNER))
    assert target_buffers(own, LENGTHS, teacher=QWEN_8B) == ()


def completion(num: int) -> Completion:
    return Completion(
        token_ids=np.arange(num, dtype=np.int32), logprobs=np.zeros(num, dtype=np.float32), text="word" * num,
        stop_reason=StopReason.STOP, policy_version_min=3, policy_version_max=3,
    )  # fmt: skip


@pytest.mark.parametrize("num", [30, 400])
def test_flows_are_within_a_fifth_of_pickled_records(num: int):
    lengths = replace(LENGTHS, rollout=num, refinement=num, trajectory=num)
    many = replace(PRIVATE, pipeline=PipelineConfig(prompts_per_step=1))
    planned = flows(many, lengths)
    written = len(pickle.dumps(completion(num), protocol=5))
    assert planned["rollouts"] == pytest.approx(written, rel=0.2)
    hidden = TeacherHidden(hidden=np.zeros((num, 4096), dtype=np.float32))
    assert planned["hidden states"] == pytest.approx(len(pickle.dumps(hidden, protocol=5)), rel=0.2)
    prompt = np.zeros(100, dtype=np.int32)
    assert planned["prompts of rollouts"] == pytest.approx(len(pickle.dumps(prompt, protocol=5)), rel=0.2)
    sample = TrainingSample(prompt_ids=prompt, response_ids=np.zeros(num, dtype=np.int32), target=hidden)
    assert planned["training batch"] == pytest.approx(len(pickle.dumps(sample, protocol=5)), rel=0.2)
    top_k = flows(replace(many, method=TOP_K, teacher=TeacherConfig(score=ScoreMethod.PREFILL)), lengths)
    targets = TopKTargets(
        topk_ids=np.random.default_rng(0).integers(0, 151_936, (num, 64), dtype=np.int32),
        topk_logprobs=np.zeros((num, 64), dtype=np.float16),
        token_logprobs=np.zeros(num, dtype=np.float32),
    )
    sent = len(pickle.dumps(targets, protocol=5))
    assert top_k["top-64 log-probabilities"] == pytest.approx(sent, rel=0.2)


def test_the_lengths_of_another_methods_run_lose_the_parts_that_this_one_does_without():
    on_rollouts = replace(
        PRIVATE,
        method=MethodConfig(trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT),
    )
    lengths = for_method(on_rollouts, LENGTHS)
    assert (lengths.refinement, lengths.teacher_prompt) == (0, 0)
    assert lengths.trajectory == lengths.rollout == 1000  # its own answer, not the shorter rewrite
    assert lengths.context == 100
    assert step_work(on_rollouts, lengths)[Stage.REFINE].counted == 0
    answers = replace(
        PRIVATE,
        method=MethodConfig(trajectory=TrajectorySource.TEACHER, teacher_context=TeacherContext.PROMPT),
    )
    assert (for_method(answers, LENGTHS).rollout, for_method(answers, LENGTHS).trajectory) == (0, 400)
    assert for_method(PRIVATE, LENGTHS) == LENGTHS


def test_a_part_that_was_not_measured_is_as_long_as_it_may_be():
    lengths = for_method(PRIVATE, replace(LENGTHS, refinement=0, teacher_prompt=0))
    longest = longest_lengths(PRIVATE)
    assert (lengths.refinement, lengths.teacher_prompt) == (longest.refinement, longest.teacher_prompt)
    assert lengths.trajectory == longest.refinement


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_length_without_end_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"--rollout-tokens"):
        GivenLengths(rollout=value)
