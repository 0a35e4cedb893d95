"""Real vLLM engines on the CPU with a tiny random model."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from actors.engine import Engine, EngineFailedError, EngineOptions, SamplingOptions, WeightUpdate
from actors.weight_transfer import Receiver, WeightSender
from tests.tiny_models import make_tiny_qwen3
from trd_ray.errors import ActorTimeoutError, MissingDependencyError, WeightSyncError
from trd_ray.types import Completion, StopReason, SyncReport
from trd_ray.weights import WeightManifest, checksum_named

pytest.importorskip("vllm")

ROOT = Path(__file__).parents[2]
PROMPT = np.arange(5, 20, dtype=np.int32)
T = TypeVar("T")


@dataclass
class Rig:
    """Two engines with the same weights, and the event loop that they live in."""

    loop: asyncio.AbstractEventLoop
    model: Path
    engines: tuple[Engine, Engine]
    versions: int = 0

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def next_version(self) -> int:
        self.versions += 1
        return self.versions

    async def open(self, sender: WeightSender, engines: tuple[Engine, ...]) -> None:
        endpoints = sender.listen([Receiver(name=f"generator-{i}") for i in range(len(engines))])
        joining = [e.init_weight_transfer(p) for e, p in zip(engines, endpoints, strict=True)]
        await asyncio.gather(asyncio.to_thread(sender.open), *joining)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    model = make_tiny_qwen3(tmp_path_factory.mktemp("model"))
    options = EngineOptions(model=str(model), max_model_len=512, kv_cache_gib=0.125, threads=1)
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: Engine(options), range(2))
    yield Rig(loop, model, (first, second))
    loop.run_until_complete(first.shutdown())
    loop.run_until_complete(second.shutdown())
    loop.close()
    names = [child.name for child in multiprocessing.active_children()]
    assert not [name for name in names if "EngineCore" in name]


def sampling(max_tokens: int = 24, **changes: Any) -> SamplingOptions:
    return SamplingOptions(**{"max_tokens": max_tokens, "seed": 7, "ignore_eos": True, **changes})


def load_model(path: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def other_weights(path: Path, seed: int) -> torch.nn.Module:
    """The same architecture with all weights changed, the norms too."""
    model = load_model(path)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def model_logprobs(model: torch.nn.Module, completion: Completion) -> np.ndarray:
    """[T] log-softmax of the tokens under transformers' own forward pass."""
    ids = torch.tensor(np.concatenate([PROMPT, completion.token_ids]), dtype=torch.long)
    logprobs_TV = model(ids[None]).logits[0].log_softmax(-1)[len(PROMPT) - 1 : -1]
    return logprobs_TV.gather(1, ids[len(PROMPT) :, None])[:, 0].numpy()


async def push(
    sender: WeightSender, engines: tuple[Engine, ...], model: torch.nn.Module, version: int
) -> tuple[SyncReport, list[WeightUpdate]]:
    manifest = WeightManifest.of(model.named_parameters())
    report, *updates = await asyncio.gather(
        asyncio.to_thread(sender.send, model.named_parameters(), manifest, version),
        *(engine.update_weights(manifest, version, timeout_s=60) for engine in engines),
    )
    return report, updates


def test_logprobs_are_those_of_the_model_before_temperature_and_top_k(rig: Rig) -> None:
    engine = rig.engines[0]
    completion = rig.run(engine.generate(PROMPT, sampling(temperature=0.7, top_p=0.9, top_k=20), "raw"))
    assert completion.token_ids.dtype == np.int32
    assert completion.logprobs.dtype == np.float32
    assert completion.stop_reason is StopReason.LENGTH
    assert len(completion.token_ids) == 24
    model = load_model(rig.model)
    np.testing.assert_allclose(completion.logprobs, model_logprobs(model, completion), atol=1e-3)
    assert rig.run(engine.weight_checksum()) == checksum_named(model.named_parameters())


def test_an_end_token_is_the_last_of_the_tokens(rig: Rig) -> None:
    engine = rig.engines[0]
    free = rig.run(engine.generate(PROMPT, sampling(), "free")).token_ids.tolist()
    end = free[9]
    first = free.index(end)
    stopped = rig.run(engine.generate(PROMPT, sampling(stop_token_ids=(end,)), "stopped"))
    assert stopped.stop_reason is StopReason.STOP
    assert stopped.token_ids.tolist() == free[: first + 1]
    assert len(stopped.logprobs) == first + 1


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(rig: Rig) -> None:
    engine = rig.engines[0]

    async def both() -> tuple[list[Completion], list[Completion]]:
        together = await asyncio.gather(
            *(engine.generate(PROMPT, sampling(seed=i), f"batch-{i}") for i in range(16))
        )
        alone = [await engine.generate(PROMPT, sampling(seed=i), f"alone-{i}") for i in range(4)]
        return together, alone

    together, alone = rig.run(both())
    for one, other in zip(together[:4], alone, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
    assert len({tuple(c.token_ids.tolist()) for c in together}) == 16


def test_one_push_reaches_two_engines_and_a_request_runs_across_it(rig: Rig) -> None:
    engines = rig.engines
    before = rig.versions
    model = other_weights(rig.model, seed=1)
    version = rig.next_version()
    sender = WeightSender(timeout_s=30, bucket_bytes=100_000)

    async def scenario() -> tuple[SyncReport, Completion, list[Completion], list[str]]:
        await rig.open(sender, engines)
        long = asyncio.create_task(engines[0].generate(PROMPT, sampling(450), "long"))
        # By then the long one has its first tokens too, also where it has begun a few steps later.
        await engines[0].generate(PROMPT, sampling(30), "short")
        report, updates = await push(sender, engines, model, version)
        assert all(0 < update.load_s <= update.paused_s for update in updates)
        after = [await engine.generate(PROMPT, sampling(), "after") for engine in engines]
        return report, await long, after, [await engine.weight_checksum() for engine in engines]

    report, across, after, checksums = rig.run(scenario())
    sender.close()
    assert (across.policy_version_min, across.policy_version_max) == (before, version)
    assert report.checksum == checksum_named(model.named_parameters())
    assert checksums == [report.checksum, report.checksum]
    for completion in after:
        assert completion.policy_version_min == completion.policy_version_max == version
        np.testing.assert_allclose(completion.logprobs, model_logprobs(model, completion), atol=1e-3)
    # The last tokens of the request that ran across follow the new weights, the first the old ones.
    old, new = model_logprobs(load_model(rig.model), across), model_logprobs(model, across)
    np.testing.assert_allclose(across.logprobs[-5:], new[-5:], atol=1e-3)
    np.testing.assert_allclose(across.logprobs[:3], old[:3], atol=1e-3)


def test_one_wrong_value_changes_the_checksum_of_the_engine(rig: Rig) -> None:
    engine = rig.engines[0]
    model = other_weights(rig.model, seed=2)
    right = checksum_named(model.named_parameters())
    sender = WeightSender(timeout_s=30)

    async def scenario(name: str) -> str:
        await rig.open(sender, (engine,))
        with torch.no_grad():
            dict(model.named_parameters())[name].view(-1)[-1] += 0.25
        await push(sender, (engine,), model, rig.next_version())
        return await engine.weight_checksum()

    seen = {right}
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight",
                 "model.embed_tokens.weight", "model.norm.weight"):  # fmt: skip
        wrong = rig.run(scenario(name))
        assert wrong not in seen
        assert wrong == checksum_named(model.named_parameters())
        seen.add(wrong)
    sender.close()


def test_an_update_without_a_sender_is_named_and_a_later_push_repairs_it(rig: Rig) -> None:
    engine = rig.engines[0]
    model = other_weights(rig.model, seed=3)
    manifest = WeightManifest.of(model.named_parameters())

    async def scenario() -> None:
        silent = WeightSender(timeout_s=2)
        await rig.open(silent, (engine,))
        waiting = asyncio.create_task(engine.generate(PROMPT, sampling(480), "cut"))
        await engine.generate(PROMPT, sampling(2), "begun")
        start = time.monotonic()
        with pytest.raises(ActorTimeoutError, match="update_weights"):
            await engine.update_weights(manifest, 99, timeout_s=30)
        assert time.monotonic() - start < 20
        with pytest.raises(EngineFailedError, match="version 99"):
            await waiting
        with pytest.raises(EngineFailedError, match="version 99"):
            await engine.generate(PROMPT, sampling(), "refused")
        with pytest.raises(EngineFailedError):
            await engine.check_health()
        silent.close()
        sender = WeightSender(timeout_s=30)
        await rig.open(sender, (engine,))
        report, _ = await push(sender, (engine,), model, rig.next_version())
        assert await engine.weight_checksum() == report.checksum
        await engine.check_health()
        completion = await engine.generate(PROMPT, sampling(), "served")
        np.testing.assert_allclose(completion.logprobs, model_logprobs(model, completion), atol=1e-3)
        sender.close()

    rig.run(scenario())


def test_a_push_that_does_not_fit_the_model_fails_on_both_sides(rig: Rig) -> None:
    engine = rig.engines[1]
    model = other_weights(rig.model, seed=4)
    tensors = [(n, p) for n, p in model.named_parameters() if n != "model.norm.weight"]
    manifest = WeightManifest.of(tensors)
    stranger = [("model.layers.0.stranger.weight", torch.zeros(3, 3)), *model.named_parameters()]
    sender = WeightSender(timeout_s=15)

    async def scenario() -> None:
        await rig.open(sender, (engine,))
        sending = asyncio.create_task(asyncio.to_thread(sender.send, tensors, manifest, 98))
        with pytest.raises(WeightSyncError, match=r"left out 1 parameters.*model\.norm\.weight"):
            await engine.update_weights(manifest, 98)
        with pytest.raises(WeightSyncError, match=r"generator-0.*left out"):
            await sending
        await rig.open(sender, (engine,))
        other = WeightManifest.of(stranger)
        sending = asyncio.create_task(asyncio.to_thread(sender.send, stranger, other, 98))
        with pytest.raises(WeightSyncError, match="stranger"):
            await engine.update_weights(other, 98)
        with pytest.raises(WeightSyncError, match=r"generator-0.*stranger"):
            await sending
        await rig.open(sender, (engine,))
        report, _ = await push(sender, (engine,), model, rig.next_version())
        assert await engine.weight_checksum() == report.checksum

    rig.run(scenario())
    sender.close()


def test_a_prompt_that_is_too_long_is_refused(rig: Rig) -> None:
    with pytest.raises(ValueError, match="512"):
        rig.run(rig.engines[0].generate(np.full(600, 5, dtype=np.int32), sampling(), "too long"))


def test_another_device_than_that_of_vllm_is_refused(rig: Rig) -> None:
    with pytest.raises(MissingDependencyError, match="built for another device"):
        Engine(EngineOptions(model=str(rig.model), device="cuda"))


def test_the_engine_ends_with_an_owner_that_is_killed(rig: Rig, tmp_path: Path) -> None:
    """Also shows the backend without an installed package: no vLLM plugin is loaded here."""
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio, multiprocessing, sys, time
            from actors.engine import Engine, EngineOptions

            async def main():
                engine = Engine(EngineOptions(model={str(rig.model)!r}, kv_cache_gib=0.125, threads=1))
                await engine.start()
                print(*[child.pid for child in multiprocessing.active_children()], flush=True)
                await asyncio.sleep(600)

            if __name__ == "__main__":
                asyncio.run(main())
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_PLUGINS": ""}
    owner = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    children = [int(word) for word in owner.stdout.readline().split()]
    assert children
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 30
    while any(_is_running(child) for child in children):
        assert time.monotonic() < deadline, "the engine outlived its owner"
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
