"""A real vLLM engine of two tensor-parallel workers on the CPU: pushes, what they load, and faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from actors.engine import Engine, EngineOptions
from actors.weight_transfer import Receiver, WeightSender
from tests.actors.test_engine import PROMPT, model_logprobs, other_weights, push, sampling
from tests.tiny_models import make_tiny_qwen3
from trd_ray.errors import WeightSyncError
from trd_ray.weights import WeightManifest

pytest.importorskip("vllm")

LIMIT_S = 60.0


def memory_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("*-cpushm_*")}


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    model = make_tiny_qwen3(tmp_path / "model")
    before = memory_files()
    options = EngineOptions(
        model=str(model), max_model_len=128, kv_cache_gib=0.125, threads=1, tensor_parallel_size=2
    )
    engine = await asyncio.to_thread(Engine, options)
    await engine.start()
    assert memory_files() <= before
    yield engine
    await engine.shutdown()


async def open_group(sender: WeightSender, engine: Engine) -> None:
    (endpoint,) = sender.listen([Receiver(name="generator-0", num_workers=2)])
    await asyncio.gather(asyncio.to_thread(sender.open), engine.init_weight_transfer(endpoint))


async def test_all_workers_load_a_push_and_one_that_fails_is_repaired_by_the_next(
    engine: Engine, tmp_path: Path
) -> None:
    model = other_weights(tmp_path / "model", seed=1)
    tensors = list(model.named_parameters())
    sender = WeightSender(timeout_s=LIMIT_S)

    async def push_and_compare(version: int) -> None:
        report, _ = await push(sender, (engine,), model, version)
        assert await engine.weight_checksum() == report.checksum

    await open_group(sender, engine)
    await push_and_compare(1)
    made = await engine.generate(PROMPT, sampling(12), "after")
    np.testing.assert_allclose(made.logprobs, model_logprobs(model, made), atol=1e-3)
    assert (made.policy_version_min, made.policy_version_max) == (1, 1)

    # Both workers refuse. What the second has to say must not be taken for its answer to the next call.
    short = WeightManifest.of(tensors[:-1])
    sending = asyncio.create_task(asyncio.to_thread(sender.send, tensors[:-1], short, 2))
    with pytest.raises(WeightSyncError, match="left out 1 parameters"):
        await engine.update_weights(short, 2, timeout_s=LIMIT_S)
    with pytest.raises(WeightSyncError, match=r"generator-0.*left out 1 parameters"):
        await sending
    await open_group(sender, engine)
    await push_and_compare(3)
    sender.close()
