"""Pushes from a real learner rank with adapters: to a real engine, and its moving teacher to a receiver."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from actors.engine import EngineOptions, SamplingOptions
from actors.generator import GeneratorActor
from actors.learner import LearnerRankActor
from actors.learner_group import RayLearner
from actors.learner_senders import Which
from actors.members import NamedActor
from actors.pool import EnginePool
from actors.pool_limits import PoolLimits
from actors.weight_sync import PushGroup, RayWeightSync
from actors.weight_transfer import WeightEndpoint
from tests.actors.test_weight_transfer import join, receive
from tests.tiny_models import make_tiny_qwen3
from tests.unit.training_samples import make_samples, with_topk
from trd_ray.activity import RoleActivity
from trd_ray.batching import make_training_batch
from trd_ray.choices import ScoreMethod, Support, TeacherWeights
from trd_ray.config import (
    FaultConfig,
    LearnerConfig,
    LoraConfig,
    MethodConfig,
    OptimizerConfig,
    WeightSyncConfig,
)
from trd_ray.errors import WeightSyncError
from trd_ray.types import TrainingBatch
from trd_ray.weights import WeightManifest, checksum_named

pytest.importorskip("vllm")

PROMPT = np.arange(5, 20, dtype=np.int32)
LIMIT_S = 120.0
EMBEDDING = "model.embed_tokens.weight"
"""Its last value is -0.0, which no packed layer could give back; adapters leave it alone."""
METHOD = MethodConfig(
    teacher_weights=TeacherWeights.PERIODIC, periodic_every=2, support=Support.TOP_K, top_k=4
)


class Receiver:
    """The receiving end of a teacher's engine, without the engine."""

    def __init__(self) -> None:
        self.versions: list[int] = []
        self.weights: dict[str, torch.Tensor] = {}
        self.lies = False
        self.num_asked = 0

    def init_weight_transfer(self, endpoint: WeightEndpoint) -> None:
        self.endpoint = endpoint
        self.group = join(endpoint)

    def update_weights(self, manifest: WeightManifest, policy_version: int, timeout_s: float) -> None:
        bucket_bytes = self.endpoint.bucket_bytes
        received = receive(self.group, manifest, bucket_bytes, policy_version=policy_version)
        self.weights = {name: tensor.clone() for name, tensor in received.items()}
        self.versions.append(policy_version)

    def weight_checksum(self, timeout_s: float) -> str:
        self.num_asked += 1
        return "0" * 64 if self.lies else checksum_named(self.weights.items())

    def seen(self) -> tuple[list[int], dict[str, np.ndarray]]:
        return self.versions, {name: tensor.numpy() for name, tensor in self.weights.items()}

    def lie(self, lies: bool) -> None:
        self.lies = lies

    def asked(self) -> int:
        return self.num_asked


@dataclass
class Rig:
    """One group of each kind."""

    model: Path
    generator: NamedActor
    teacher: NamedActor

    def learner(self) -> NamedActor:
        config = LearnerConfig(
            zero_stage=3,
            threads=1,
            lora=LoraConfig(rank=4, alpha=64),
            optimizer=OptimizerConfig(learning_rate=3e-2, warmup_ratio=0.0),
        )
        handle = LearnerRankActor.options(num_cpus=0).remote(
            config, method=METHOD, score=ScoreMethod.PREFILL, student=self.model, teacher=self.model,
            rank=0, world_size=1, num_steps=9, seed=0, timeout_s=LIMIT_S,
        )  # fmt: skip
        return NamedActor(name="learner-0", handle=handle)

    async def connect(self, first: NamedActor, *, verify_every: int = 1) -> tuple[RayLearner, RayWeightSync]:
        learner = RayLearner(
            [first],
            create=never,
            host=lambda: "127.0.0.1",
            run_dir=self.model.parent,
            start_s=LIMIT_S,
            timeout_s=LIMIT_S,
        )
        await learner.setup()
        sync = RayWeightSync(
            WeightSyncConfig(bucket_mib=1, verify_every=verify_every),
            learners=lambda: learner.ranks,
            address=lambda: learner.address,
            generators=push_group(Which.STUDENT, self.generator),
            teachers=push_group(Which.TEACHER, self.teacher),
            timeout_s=LIMIT_S,
            max_tries=1,
            replace_s=LIMIT_S,
        )
        return learner, sync


def never(index: int) -> NamedActor:
    raise AssertionError(f"nothing is started anew here, and {index} was")


def push_group(which: Which, actor: NamedActor) -> PushGroup:
    pool = EnginePool(
        actor.name.partition("-")[0],
        [actor],
        create=never,
        limits=PoolLimits(request_s=LIMIT_S, start_s=LIMIT_S, replace_s=LIMIT_S, num_slots=8),
        faults=FaultConfig(max_restarts=0),
        activity=RoleActivity(),
    )
    return PushGroup(which=which, pool=pool, dtype="float32", workers_per_actor=1)


@pytest.fixture(scope="module")
def rig(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    model = make_tiny_qwen3(tmp_path_factory.mktemp("model"))
    weights = load_file(model / "model.safetensors")
    weights[EMBEDDING][-1, -1] = -0.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    options = EngineOptions(
        model=str(model), max_model_len=256, kv_cache_gib=0.125, threads=1, weight_transfer_backend="cpu"
    )
    generator = GeneratorActor.options(num_cpus=0, max_concurrency=8).remote(options)
    teacher = ray.remote(Receiver).options(num_cpus=0).remote()
    ray.get(generator.start.remote(), timeout=LIMIT_S)
    yield Rig(
        model,
        NamedActor(name="generator-0", handle=generator),
        NamedActor(name="teacher-0", handle=teacher),
    )
    ray.get(generator.shutdown.remote(), timeout=LIMIT_S)


def batch(step: int) -> TrainingBatch:
    samples = make_samples([(3, 12), (2, 5)], seed=step, vocab_size=128)
    return make_training_batch(
        [with_topk(sample, top_k=4, vocab_size=128) for sample in samples],
        learner_step=step, num_ranks=1, micro_batch_tokens=100,
    )  # fmt: skip


@torch.no_grad()
def logprobs_of(model: Path, token_ids: np.ndarray) -> np.ndarray:
    tokens = torch.tensor(np.concatenate([PROMPT, token_ids]), dtype=torch.long)
    logits = AutoModelForCausalLM.from_pretrained(model)(tokens[None]).logits[0, len(PROMPT) - 1 : -1]
    return logits.log_softmax(-1).gather(1, tokens[len(PROMPT) :, None])[:, 0].numpy()


async def test_merged_weights_reach_the_engine_and_a_teacher_that_moved_reaches_its_own(
    rig: Rig, tmp_path: Path
) -> None:
    first = rig.learner()
    learner, sync = await rig.connect(first)
    await sync.push(0)
    assert (await rig.teacher.handle.seen.remote())[0] == []
    for step in (1, 2, 3):
        await learner.learn(batch(step))
        await sync.push(step)
        if step == 2:
            await learner.save(tmp_path / "step_2")
    await learner.save(tmp_path / "step_3")

    # The engine generates as the merged model, which is far from the first one.
    sampling = SamplingOptions(max_tokens=24, seed=7, ignore_eos=True, temperature=1.0)
    made = await rig.generator.handle.generate.remote(PROMPT, sampling, "merged")
    np.testing.assert_allclose(
        made.logprobs, logprobs_of(tmp_path / "step_3" / "hf", made.token_ids), atol=1e-3
    )
    assert np.abs(made.logprobs - logprobs_of(rig.model, made.token_ids)).max() > 0.05

    # The teacher was renewed after step 2 alone, and pushed once.
    versions, weights = await rig.teacher.handle.seen.remote()
    assert versions == [2]
    after_two = AutoModelForCausalLM.from_pretrained(tmp_path / "step_2" / "hf")
    for name, tensor in after_two.named_parameters():
        np.testing.assert_array_equal(weights[name], tensor.detach().numpy())
    await _end(first)

    # After a resumption the teachers have the first weights again: pushed once, and not a second time.
    resumed = rig.learner()
    learner, sync = await rig.connect(resumed)
    assert await learner.load(tmp_path / "step_3") == 3
    await sync.push(3)
    await sync.push(3)
    versions, again = await rig.teacher.handle.seen.remote()
    assert versions == [2, 2]
    assert all(np.array_equal(again[name], weights[name]) for name in weights)

    # One that holds other weights than were sent is named.
    await rig.teacher.handle.lie.remote(True)
    await learner.learn(batch(4))
    with pytest.raises(WeightSyncError, match=r"(?s)push of the teacher's weights, version 4.*teacher-0"):
        await sync.push(4)
    await _end(resumed)


async def test_weights_are_read_back_at_the_first_push_and_at_each_so_many_th(rig: Rig) -> None:
    await rig.teacher.handle.lie.remote(False)
    first = rig.learner()
    learner, sync = await rig.connect(first, verify_every=2)
    before, asked, minus_zero = await rig.teacher.handle.asked.remote(), [], []
    for step in range(1, 7):
        # The teacher moves, and is pushed, every second step.
        await learner.learn(batch(step))
        await sync.push(step)
        asked.append(await rig.teacher.handle.asked.remote() - before)
        if step % 2 == 0:
            weights = (await rig.teacher.handle.seen.remote())[1]
            minus_zero.append(bool(np.signbit(weights[EMBEDDING][-1, -1])))
    assert asked == [0, 1, 1, 1, 1, 2]
    # Only what is read back comes in the form that can be.
    assert minus_zero == [False, True, False]
    await _end(first)


async def _end(learner: NamedActor) -> None:
    await asyncio.wait_for(learner.handle.shutdown.remote(), LIMIT_S)
    ray.kill(learner.handle)
