"""Pushes while requests run, on real vLLM engines with the models of the testbed: who made which token."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from actors.engine import Engine, EngineOptions, SamplingOptions
from actors.engine_options import sampling_params
from actors.weight_transfer import Receiver, WeightSender
from actors.weight_transfer_memory import SharedMemory
from tests.tiny_models import make_tiny_model
from trd_ray.types import Completion
from trd_ray.weights import WeightManifest, checksum_named

pytest.importorskip("vllm")

MODELS = Path(__file__).parents[2] / "trd_ray" / "testbed" / "models"
NAMES = ("student", "teacher", "weak_student")
"""The weights of policy versions 0, 1 and 2: one architecture, three trainings."""
PROMPT = np.arange(10, 30, dtype=np.int32)
CACHED_PROMPT = np.tile(np.arange(10, 90, dtype=np.int32), 4)  # whole blocks of the prefix cache
NUM_TOKENS = 440
TOLERANCE = 2e-3
T = TypeVar("T")


@dataclass
class Rig:
    loop: asyncio.AbstractEventLoop
    engines: tuple[Engine, Engine]
    models: list[torch.nn.Module]

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(call, 120))


def load_model(path: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    options = EngineOptions(
        model=str(MODELS / NAMES[0]), max_model_len=512, kv_cache_gib=0.25, threads=1, max_num_seqs=4
    )
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: Engine(options), range(2))
    yield Rig(loop, (first, second), [load_model(MODELS / name) for name in NAMES])
    for engine in (first, second):
        loop.run_until_complete(engine.shutdown())
    loop.close()


def greedy(max_tokens: int) -> SamplingOptions:
    return SamplingOptions(max_tokens=max_tokens, seed=0, temperature=0.0, ignore_eos=True)


@torch.no_grad()
def logprobs_TV(model: torch.nn.Module, prompt: np.ndarray, completion: Completion) -> torch.Tensor:
    ids = torch.tensor(np.concatenate([prompt, completion.token_ids]), dtype=torch.long)
    return model(ids[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]


def made_by(model: torch.nn.Module, prompt: np.ndarray, completion: Completion) -> np.ndarray:
    """[T] whether each token is the model's greedy one, with the model's own log-probability."""
    table_TV = logprobs_TV(model, prompt, completion)
    own_T = table_TV.gather(1, torch.tensor(completion.token_ids, dtype=torch.long)[:, None])[:, 0]
    is_best = (table_TV.max(1).values - own_T).numpy() < TOLERANCE
    return is_best & (np.abs(own_T.numpy() - completion.logprobs) < TOLERANCE)


async def open_group(sender: WeightSender, engines: tuple[Engine, ...]) -> None:
    endpoints = sender.listen([Receiver(name=f"generator-{i}") for i in range(len(engines))])
    joining = [e.init_weight_transfer(p) for e, p in zip(engines, endpoints, strict=True)]
    await asyncio.gather(asyncio.to_thread(sender.open), *joining)


async def push(
    sender: WeightSender, engines: tuple[Engine, ...], model: torch.nn.Module, version: int
) -> None:
    manifest = WeightManifest.of(model.named_parameters())
    report, *_ = await asyncio.gather(
        asyncio.to_thread(sender.send, model.named_parameters(), manifest, version),
        *(engine.update_weights(manifest, version, timeout_s=60) for engine in engines),
    )
    assert [await engine.weight_checksum() for engine in engines] == [report.checksum] * len(engines)


def test_requests_in_flight_outlive_two_pushes_and_each_token_is_of_the_version_it_is_labelled_with(
    rig: Rig,
) -> None:
    engines = rig.engines
    sender = WeightSender(timeout_s=30)
    params = sampling_params(greedy(NUM_TOKENS))

    async def scenario() -> tuple[list[Any], list[Completion]]:
        await open_group(sender, engines)
        long = [
            asyncio.create_task(engine.run(PROMPT + index, params, f"long-{index}"))
            for engine in engines
            for index in range(3)
        ]
        for version in (1, 2):
            # The fourth place: when this one is done, the long ones have come as far.
            await asyncio.gather(*(e.generate(PROMPT, greedy(20), f"short-{version}") for e in engines))
            assert not any(task.done() for task in long)
            await push(sender, engines, rig.models[version], version)
        later = await asyncio.gather(*(e.generate(PROMPT, greedy(30), "later") for e in engines))
        assert not any(task.done() for task in long)
        return [await task for task in long], later

    outputs, later = rig.run(scenario())
    sender.close()
    for index, output in enumerate(outputs):
        prompt = PROMPT + index % 3
        completion = engines[0].completion(output)
        assert (completion.policy_version_min, completion.policy_version_max) == (0, 2)
        assert len(completion.token_ids) == NUM_TOKENS
        spans = output.outputs[0].weight_versions
        assert [int(span.version) for span in spans] == [0, 1, 2]
        assert [span.start for span in spans] == [0, spans[0].end, spans[1].end]
        assert spans[2].end == NUM_TOKENS
        for span in spans:
            right = made_by(rig.models[int(span.version)], prompt, completion)[span.start : span.end]
            assert right.all()
            # The other weights would not have made them, so the labels are no accident.
            for other in {0, 1, 2} - {int(span.version)}:
                wrong = made_by(rig.models[other], prompt, completion)[span.start : span.end]
                assert wrong.mean() < 0.9
    for completion in later:
        assert completion.policy_version_min == completion.policy_version_max == 2
        assert made_by(rig.models[2], PROMPT, completion).all()


def test_nothing_cached_from_before_a_push_is_read_after_it(rig: Rig) -> None:
    engine = rig.engines[0]
    sender = WeightSender(timeout_s=30)
    params = sampling_params(greedy(20))

    async def scenario() -> list[Any]:
        await open_group(sender, (engine,))
        outputs = []
        for version in (3, 4):
            await push(sender, (engine,), rig.models[version - 3], version)
            outputs += [await engine.run(CACHED_PROMPT, params, f"{version}-{i}") for i in range(2)]
        return outputs

    outputs = rig.run(scenario())
    sender.close()
    cached = [output.num_cached_tokens for output in outputs]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > 0  # the same prompt is read from the cache where it may be
    for output, model in zip(outputs, (0, 0, 1, 1), strict=True):
        completion = engine.completion(output)
        assert made_by(rig.models[model], CACHED_PROMPT, completion).all()


def kept_memories(monkeypatch: pytest.MonkeyPatch) -> list[SharedMemory]:
    """Filled with what senders make from now on."""
    made: list[SharedMemory] = []
    create = SharedMemory.create

    def keep() -> SharedMemory | None:
        memory = create()
        assert memory is not None
        made.append(memory)
        return memory

    monkeypatch.setattr(SharedMemory, "create", keep)
    return made


@pytest.mark.parametrize("kind", ["qwen2", "gemma2"])
def test_models_with_biases_an_untied_head_or_other_norms_take_whole_pushes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """qwen2 has biases in fused layers and here a head of its own; gemma2 has other norms.

    What they compute with is theirs: the memory that a push came through is overwritten after it.
    """
    memories = kept_memories(monkeypatch)
    tied = kind == "gemma2"
    make_tiny_model(tmp_path, kind, hidden_size=64, head_dim=32, tie_word_embeddings=tied)
    model = load_model(tmp_path)
    engine = Engine(EngineOptions(model=str(tmp_path), max_model_len=256, kv_cache_gib=0.125, threads=1))
    sender = WeightSender(timeout_s=30, bucket_bytes=5000)

    async def scenario() -> Completion:
        await open_group(sender, (engine,))
        for version in (1, 2):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            await push(sender, (engine,), model, version)
            num_bytes = WeightManifest.of(model.named_parameters()).num_bytes
            memories[0].write(num_bytes).fill_(255)  # not a number, in all formats
            assert await engine.weight_checksum() == checksum_named(model.named_parameters())
        return await engine.generate(PROMPT, greedy(20), "after")

    async def whole() -> Completion:
        try:
            return await scenario()
        finally:
            await engine.shutdown()

    completion = asyncio.run(whole())
    sender.close()
    assert made_by(model, PROMPT, completion).all()
