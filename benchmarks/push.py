"""Cost of a push of weights into real engines, against a plain copy of the same bytes in the same run.

One process sends, as learner rank 0 does; 1 or 2 vLLM engines receive and load. In turns with each
push the same sender broadcasts the same number of bytes through plain gloo to as many plain
processes, pushes to those processes, which check what arrives and load nothing, and copies the bytes
within its own memory. Models: the testbed's, and random ones of 50 and 200 million parameters.
Usage: python -m benchmarks.push [--models testbed 50m 200m] [--engines 1 2] [--dtype bfloat16] [--repeats 7]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

import trd_ray.testbed
from actors.engine import Engine, EngineOptions, WeightUpdate
from actors.weight_transfer import Receiver, WeightSender
from actors.weight_transfer_group import TransferGroup, listen_on
from actors.weight_transfer_receive import receiving
from tests.tiny_models import make_tiny_qwen3
from trd_ray.weights import TensorSpec, WeightManifest

_TIMEOUT_S = 120.0
_PIECE_BYTES = 64 * 2**20
_SIZES = {
    "50m": {"hidden_size": 512, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64,
            "intermediate_size": 1536, "num_layers": 14, "vocab_size": 8192},
    "200m": {"hidden_size": 1024, "num_heads": 16, "num_kv_heads": 8, "head_dim": 64,
             "intermediate_size": 3072, "num_layers": 14, "vocab_size": 16384},
}  # fmt: skip


class Sending:
    """Runs in the sender's process: one method a command of the benchmark."""

    def __init__(self, model: Path, dtype: str, plain_port: int, num_receivers: int) -> None:
        torch.set_num_threads(1)
        target = TensorSpec(name="", dtype=dtype, shape=()).torch_dtype
        self._tensors = {name: tensor.to(target) for name, tensor in load_file(model).items()}
        self._manifest = WeightManifest.of(self._tensors.items())
        self._flat = torch.ones(self._manifest.num_bytes, dtype=torch.uint8)
        self._other = torch.ones_like(self._flat)
        self._senders = {to: WeightSender(timeout_s=_TIMEOUT_S) for to in ("engines", "processes")}
        self._receivers = [Receiver(name=f"generator-{index}") for index in range(num_receivers)]
        _join_plain(0, num_receivers + 1, plain_port)

    def manifest(self) -> object:
        return self._manifest

    def listen(self, to: str) -> object:
        return self._senders[to].listen(self._receivers)

    def open(self, to: str) -> object:
        return self._senders[to].open()

    def push(self, to: str, read_back: str = "") -> object:
        """Seconds of a push as the sender sees it."""
        sender, tensors = self._senders[to], self._tensors.items()
        return sender.send(tensors, self._manifest, 1, read_back=bool(read_back)).sync_s

    def plain(self) -> object:
        """Seconds of a plain broadcast of the same bytes."""
        return _broadcast(self._flat)

    def memory(self) -> object:
        """Seconds of a copy within this process."""
        start = time.perf_counter()
        self._other.copy_(self._flat)
        return time.perf_counter() - start


def _join_plain(rank: int, world_size: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)


def _broadcast(flat: torch.Tensor) -> float:
    dist.barrier()
    start = time.perf_counter()
    for piece in flat.split(_PIECE_BYTES):
        dist.broadcast(piece, 0)
    dist.barrier()
    return time.perf_counter() - start


def _serve_commands(pipe: Connection, model: Path, dtype: str, plain_port: int, num_receivers: int) -> None:
    sending = Sending(model, dtype, plain_port, num_receivers)
    while (command := pipe.recv()) != "end":
        name, *arguments = command.split()
        pipe.send(getattr(sending, name)(*arguments))


def _receive_plainly(pipe: Connection, rank: int, world_size: int, port: int) -> None:
    torch.set_num_threads(1)
    _join_plain(rank, world_size, port)
    manifest, endpoint = pipe.recv()
    flat = torch.ones(manifest.num_bytes, dtype=torch.uint8)
    group = TransferGroup(
        address=endpoint.master_address,
        port=endpoint.master_port,
        rank=endpoint.rank_offset,
        world_size=endpoint.world_size,
        timeout_s=endpoint.timeout_s,
    )
    group.connect()
    while (command := pipe.recv()) != "end":
        if command == "plain":
            _broadcast(flat)
            continue
        size = endpoint.bucket_bytes
        with receiving(group, manifest, policy_version=1, bucket_bytes=size) as tensors:
            for _ in tensors:
                pass


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Seconds of one round."""

    memory_s: float
    plain_s: float
    checked_s: float
    """A push to processes that check the bytes and load nothing."""
    push_s: float
    """From the call to the engines' resumption, with the check of what arrived."""
    verified_s: float
    """Another push, and the read-back of what the engines compute with."""
    paused_s: float
    """Longest pause of an engine."""
    load_s: float


class Round:
    """The processes of one measurement."""

    def __init__(
        self, sender: Connection, plain: list[Connection], engines: list[Engine], manifest: WeightManifest
    ) -> None:
        self._sender = sender
        self._plain = plain
        self._engines = engines
        self.manifest = manifest
        self._pool = ThreadPoolExecutor(1)

    def _ask(self, command: str) -> object:
        self._sender.send(command)
        return self._sender.recv()

    async def ask(self, command: str) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._ask, command)

    async def open(self) -> None:
        endpoints = await self.ask("listen engines")
        assert isinstance(endpoints, tuple)
        joining = [e.init_weight_transfer(p) for e, p in zip(self._engines, endpoints, strict=True)]
        await asyncio.gather(self.ask("open engines"), *joining)
        endpoints = await self.ask("listen processes")
        assert isinstance(endpoints, tuple)
        for pipe, endpoint in zip(self._plain, endpoints, strict=True):
            pipe.send((self.manifest, endpoint))
        await self.ask("open processes")

    async def measure(self) -> Figures:
        for pipe in self._plain:
            pipe.send("plain")
        plain_s, memory_s = await self.ask("plain"), await self.ask("memory")
        for pipe in self._plain:
            pipe.send("checked")
        checked_s = await self.ask("push processes")
        push_s, updates = await self._push("push engines")
        verified_s, _ = await self._push("push engines read_back")
        start = time.perf_counter()
        await asyncio.gather(*(engine.weight_checksum() for engine in self._engines))
        verified_s += time.perf_counter() - start
        assert isinstance(plain_s, float) and isinstance(memory_s, float) and isinstance(checked_s, float)
        return Figures(
            memory_s=memory_s,
            plain_s=plain_s,
            checked_s=checked_s,
            push_s=push_s,
            verified_s=verified_s,
            paused_s=max(update.paused_s for update in updates),
            load_s=max(update.load_s for update in updates),
        )

    async def _push(self, command: str) -> tuple[float, list[WeightUpdate]]:
        start = time.perf_counter()
        _, *updates = await asyncio.gather(
            self.ask(command), *(engine.update_weights(self.manifest, 1) for engine in self._engines)
        )
        return time.perf_counter() - start, updates


@contextlib.contextmanager
def _process(target: Callable[..., None], *arguments: object) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    try:
        yield here
    finally:
        here.send("end")
        process.join(_TIMEOUT_S)


@contextlib.asynccontextmanager
async def _round(folder: Path, dtype: str, num_engines: int) -> AsyncIterator[Round]:
    with listen_on("127.0.0.1") as probe:
        port = int(probe.getsockname()[1])
    weights = folder / "model.safetensors"
    options = EngineOptions(model=str(folder), dtype=dtype, max_model_len=256, kv_cache_gib=0.25, threads=1)
    with ThreadPoolExecutor(num_engines) as pool:
        engines = list(pool.map(lambda _: Engine(options), range(num_engines)))
    try:
        with contextlib.ExitStack() as stack:
            sender = stack.enter_context(_process(_serve_commands, weights, dtype, port, num_engines))
            plain = [
                stack.enter_context(_process(_receive_plainly, rank, num_engines + 1, port))
                for rank in range(1, num_engines + 1)
            ]
            sender.send("manifest")
            manifest = sender.recv()
            assert isinstance(manifest, WeightManifest)
            yield Round(sender, plain, engines, manifest)
    finally:
        for engine in engines:
            await engine.shutdown()


async def measure(folder: Path, name: str, dtype: str, num_engines: int, repeats: int) -> None:
    async with _round(folder, dtype, num_engines) as rounds:
        await rounds.open()
        for _ in range(2):
            await rounds.measure()  # warms both up
        figures = [await rounds.measure() for _ in range(repeats)]
        manifest = rounds.manifest
    print(
        f"\n{name}: {manifest.num_parameters / 1e6:.1f}M parameters, {manifest.num_bytes / 1e6:.1f} MB "
        f"{dtype}, {num_engines} engine(s), {repeats} rounds"
    )
    rows: dict[str, list[float]] = {
        "copy in memory, ms": [f.memory_s * 1e3 for f in figures],
        "plain broadcast, ms": [f.plain_s * 1e3 for f in figures],
        "checked, not loaded, ms": [f.checked_s * 1e3 for f in figures],
        "push, ms": [f.push_s * 1e3 for f in figures],
        "engine paused, ms": [f.paused_s * 1e3 for f in figures],
        "of it loading, ms": [f.load_s * 1e3 for f in figures],
        "push, verified, ms": [f.verified_s * 1e3 for f in figures],
        "checked / broadcast": [f.checked_s / f.plain_s for f in figures],
        "push / broadcast": [f.push_s / f.plain_s for f in figures],
        "verified / broadcast": [f.verified_s / f.plain_s for f in figures],
    }
    for label, values in rows.items():
        print(
            f"{label:24} median {statistics.median(values):9.2f}  "
            f"min {min(values):9.2f}  max {max(values):9.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["testbed", *_SIZES])
    parser.add_argument("--engines", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for name in arguments.models:
            if name == "testbed":
                folder = Path(trd_ray.testbed.__path__[0]) / "models" / "student"
            else:
                folder = make_tiny_qwen3(Path(root) / name, dtype=arguments.dtype, **_SIZES[name])
            for num_engines in arguments.engines:
                asyncio.run(measure(folder, name, arguments.dtype, num_engines, arguments.repeats))


if __name__ == "__main__":
    main()
