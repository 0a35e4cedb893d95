"""The sender and its group, with plain receivers in threads instead of engines."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from actors.weight_transfer import Receiver, WeightEndpoint, WeightSender, checked
from actors.weight_transfer_group import TransferGroup, listen_on
from actors.weight_transfer_memory import SharedMemory
from actors.weight_transfer_receive import receiving
from trd_ray.errors import ActorTimeoutError, WeightSyncError
from trd_ray.weights import WeightManifest, checksum_named

TENSORS = [
    ("b", torch.arange(6, dtype=torch.float32).reshape(2, 3)),
    ("a", torch.tensor([1.5, -2.0], dtype=torch.bfloat16)),
    ("c", torch.randn(1000, generator=torch.Generator().manual_seed(0))),
]


def join(endpoint: WeightEndpoint) -> TransferGroup:
    group = TransferGroup(
        address=endpoint.master_address,
        port=endpoint.master_port,
        rank=endpoint.rank_offset,
        world_size=endpoint.world_size,
        timeout_s=endpoint.timeout_s,
    )
    group.connect()
    return group


def receive(
    group: TransferGroup, manifest: WeightManifest, bucket_bytes: int, *, policy_version: int = 1
) -> dict[str, torch.Tensor]:
    with receiving(group, manifest, policy_version=policy_version, bucket_bytes=bucket_bytes) as tensors:
        return dict(tensors)


@pytest.fixture(params=[True, False], ids=["memory", "gloo"])
def shared_memory(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def open_group(sender: WeightSender, pool: ThreadPoolExecutor, names: tuple[str, ...]) -> list[TransferGroup]:
    endpoints = sender.listen([Receiver(name=name) for name in names])
    joining = [pool.submit(join, endpoint) for endpoint in endpoints]
    sender.open()
    return [future.result() for future in joining]


def test_a_push_reaches_all_receivers_bit_by_bit(shared_memory: bool) -> None:
    # The third tensor alone is larger than a bucket. Each push brings other values, the last more tensors.
    pushes = [[(name, tensor + version) for name, tensor in TENSORS] for version in (1, 2)]
    pushes.append([("first", torch.ones(7)), *TENSORS, ("nothing", torch.empty(0, 4))])
    sender = WeightSender(timeout_s=20, bucket_bytes=256, shared_memory=shared_memory)
    with ThreadPoolExecutor(4) as pool:
        groups = open_group(sender, pool, ("first", "second"))
        assert all((group.memory is not None) is shared_memory for group in groups)
        for version, tensors in enumerate(pushes, start=1):
            manifest = WeightManifest.of(tensors)
            arriving = [
                pool.submit(receive, group, manifest, 256, policy_version=version) for group in groups
            ]
            report = sender.send(iter(tensors), manifest, version)
            for future in arriving:
                received = future.result()
                assert list(received) == [name for name, _ in tensors]
                assert all(torch.equal(received[name], tensor) for name, tensor in tensors)
            assert report.checksum == checksum_named(tensors)
            assert (report.policy_version, report.num_parameters) == (version, manifest.num_parameters)
        sender.close()
        for group in groups:
            group.close()


@pytest.mark.parametrize("read_back", [True, False])
def test_zeros_and_subnormals_travel_as_they_are_unless_they_are_to_be_read_back(
    shared_memory: bool, read_back: bool
) -> None:
    values = torch.tensor([1.0, -0.0, 0.0, 1e-42, -1e-40, -2.5, 1e-30])
    expected = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, -2.5, 1e-30]) if read_back else values
    # Cast on the way: what is subnormal is so in the dtype that travels.
    manifest, learner = WeightManifest.of([("w", values)]), values.double()
    sender = WeightSender(timeout_s=20, bucket_bytes=256, shared_memory=shared_memory)
    with ThreadPoolExecutor(2) as pool:
        (group,) = open_group(sender, pool, ("only",))
        arriving = pool.submit(receive, group, manifest, 256)
        report = sender.send([("w", learner)], manifest, 1, read_back=read_back)
        received = arriving.result()["w"].clone()
        sender.close()
        group.close()
    assert received.view(torch.int32).tolist() == expected.view(torch.int32).tolist()
    assert report.checksum == (checksum_named([("w", values)]) if read_back else "")


def test_one_receiver_elsewhere_makes_gloo_carry_the_bytes_and_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = WeightManifest.of(TENSORS)
    sender = WeightSender(timeout_s=20, bucket_bytes=256)
    find = SharedMemory.find
    asked = iter(["here", "elsewhere"])
    monkeypatch.setattr(SharedMemory, "find", lambda ticket: find(ticket) if next(asked) == "here" else None)
    with ThreadPoolExecutor(4) as pool:
        groups = open_group(sender, pool, ("first", "second"))
        assert [group.memory for group in groups] == [None, None]
        arriving = [pool.submit(receive, group, manifest, 256) for group in groups]
        sender.send(iter(TENSORS), manifest, 1)
        for future in arriving:
            assert all(torch.equal(future.result()[name], tensor) for name, tensor in TENSORS)
    sender.close()
    assert re.search(r"weights travel through sockets.*\['(first|second)'\]", caplog.text)


def test_shared_memory_grows_and_outlives_both_its_ends() -> None:
    sending = SharedMemory.create()
    assert sending is not None
    receiving = SharedMemory.find(sending.ticket)
    assert receiving is not None
    with pytest.raises(ValueError, match="length"):
        receiving.read(10)  # nothing there yet: refused, where a plain read of the map would kill
    sending.write(10).fill_(3)
    small = receiving.read(10)
    sending.write(5000).fill_(4)
    large = receiving.read(5000)
    sending.close()
    receiving.close()
    assert small.tolist() == [4] * 10 and large.tolist() == [4] * 5000


def open_files(name: str) -> int:
    """How many of this process's descriptors are of that file."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile by a thread
            count += name in os.readlink(link)
    return count


def test_shared_memory_that_nobody_closes_is_given_back() -> None:
    sending = SharedMemory.create()
    assert sending is not None
    receiving = SharedMemory.find(sending.ticket)
    assert receiving is not None
    name = sending.ticket.split()[2]
    assert open_files(name) == 2
    del sending, receiving
    assert open_files(name) == 0


def test_a_system_without_shared_memory_pushes_through_sockets_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(name: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    manifest = WeightManifest.of(TENSORS)
    sender = WeightSender(timeout_s=20, bucket_bytes=256)
    with ThreadPoolExecutor(4) as pool:
        (group,) = open_group(sender, pool, ("only",))
        arriving = pool.submit(receive, group, manifest, 256)
        sender.send(iter(TENSORS), manifest, 1)
        assert list(arriving.result()) == ["b", "a", "c"]
    sender.close()
    assert "through sockets: this system gives no shared memory" in caplog.text


def test_memory_that_the_system_refuses_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, length: int) -> None:
        raise OSError(27, "File too large")

    manifest = WeightManifest.of(TENSORS)
    sender = WeightSender(timeout_s=5, bucket_bytes=256)
    with ThreadPoolExecutor(4) as pool:
        (group,) = open_group(sender, pool, ("only",))
        arriving = pool.submit(receive, group, manifest, 256)
        monkeypatch.setattr(os, "ftruncate", full)
        with pytest.raises(WeightSyncError, match=r"File too large(.|\n)*weight_sync.shared_memory=false"):
            sender.send(iter(TENSORS), manifest, 1)
        with pytest.raises(RuntimeError):
            arriving.result(timeout=10)


def test_shared_memory_is_not_found_by_a_ticket_of_another_process_or_name(tmp_path: Path) -> None:
    memory = SharedMemory.create()
    assert memory is not None
    process, descriptor, name = memory.ticket.split()
    with (tmp_path / "other").open("w") as other:
        assert SharedMemory.find(f"{process} {other.fileno()} {name}") is None
    assert SharedMemory.find(f"{process} {descriptor} {name[::-1]}") is None
    assert SharedMemory.find(f"{2**22 + 1} {descriptor} {name}") is None
    ticket = memory.ticket
    memory.close()
    assert SharedMemory.find(ticket) is None


def test_tensors_are_cast_to_the_dtype_of_the_manifest() -> None:
    manifest = WeightManifest.of(TENSORS, dtype="bfloat16")
    sender = WeightSender(timeout_s=20, bucket_bytes=256)
    with ThreadPoolExecutor(2) as pool:
        (group,) = open_group(sender, pool, ("only",))
        arriving = pool.submit(receive, group, manifest, 256)
        report = sender.send(TENSORS, manifest, 1, read_back=False)
        received = {name: tensor.clone() for name, tensor in arriving.result().items()}
        sender.close()
        group.close()
    assert all(torch.equal(received[name], tensor.bfloat16()) for name, tensor in TENSORS)
    assert manifest.num_bytes == report.num_bytes == 2 * 1008


def test_two_buckets_are_filled_before_receivers_have_begun_and_earn_them_no_time() -> None:
    tensors = [*TENSORS, ("d", torch.ones(1000))]
    manifest = WeightManifest.of(tensors)
    limit_s = 6.0
    taken = []

    def slowly() -> Iterator[tuple[str, torch.Tensor]]:
        time.sleep(limit_s)
        for name, tensor in tensors:
            taken.append(name)
            yield name, tensor

    sender = WeightSender(timeout_s=limit_s, bucket_bytes=256)
    with ThreadPoolExecutor(2) as pool:
        (group,) = open_group(sender, pool, ("asleep",))
        start = time.monotonic()
        with pytest.raises(ActorTimeoutError, match=r"no answer from \['asleep'\]"):
            sender.send(slowly(), manifest, 1)
        assert limit_s <= time.monotonic() - start < 1.8 * limit_s
        group.close()
    assert taken == ["b", "a", "c"]  # the first two share a bucket


def test_a_receiver_that_does_not_begin_is_named() -> None:
    manifest = WeightManifest.of(TENSORS)
    sender = WeightSender(timeout_s=2, bucket_bytes=256)
    with ThreadPoolExecutor(4) as pool:
        groups = open_group(sender, pool, ("present", "asleep"))
        arriving = pool.submit(receive, groups[0], manifest, 256)
        with pytest.raises(ActorTimeoutError, match=r"no answer from \['asleep'\]"):
            sender.send(TENSORS, manifest, 1)
        # The group is gone, so that the one that waits in a broadcast does not wait for ever.
        with pytest.raises(RuntimeError):
            arriving.result(timeout=10)
        with pytest.raises(WeightSyncError, match="not connected"):
            sender.send(TENSORS, manifest, 1)


def test_a_receiver_that_stops_in_the_middle_is_named() -> None:
    # Three buckets: the last does not travel before all have had the first.
    tensors = [*TENSORS, ("d", torch.ones(1000))]
    manifest = WeightManifest.of(tensors)
    sender = WeightSender(timeout_s=2, bucket_bytes=256)

    def stop_after_begin(group: TransferGroup) -> None:
        group.report(group.begin_push(), "0")

    def receive_and_fail(group: TransferGroup) -> None:
        with pytest.raises(RuntimeError):
            receive(group, manifest, 256)

    with ThreadPoolExecutor(4) as pool:
        groups = open_group(sender, pool, ("present", "stuck"))
        failing = pool.submit(receive_and_fail, groups[0])
        stopping = pool.submit(stop_after_begin, groups[1])
        with pytest.raises(ActorTimeoutError, match="stuck"):
            sender.send(tensors, manifest, 1)
        stopping.result()
        failing.result(timeout=10)


def test_a_receiver_that_does_not_join_is_named() -> None:
    sender = WeightSender(timeout_s=1)
    sender.listen([Receiver(name="nobody")])
    with pytest.raises(ActorTimeoutError, match="nobody"):
        sender.open()


def test_the_error_of_a_receiver_reaches_the_sender() -> None:
    manifest = WeightManifest.of(TENSORS)
    sender = WeightSender(timeout_s=20)
    refused = threading.Event()

    def refuse(group: TransferGroup) -> None:
        group.report_error(group.begin_push(), "KeyError: no such layer")
        refused.set()

    with ThreadPoolExecutor(2) as pool:
        groups = open_group(sender, pool, ("picky",))
        future: Future[None] = pool.submit(refuse, groups[0])
        with pytest.raises(WeightSyncError, match=r"picky.*no such layer"):
            sender.send(TENSORS, manifest, 1)
        future.result()


@pytest.mark.parametrize(
    "tensors",
    [TENSORS[:2], [*TENSORS, ("d", torch.zeros(1))], [TENSORS[0], ("x", TENSORS[1][1]), TENSORS[2]]],
    ids=["too few", "too many", "other name"],
)
def test_tensors_that_differ_from_the_manifest_are_refused(tensors: list[tuple[str, torch.Tensor]]) -> None:
    with pytest.raises(WeightSyncError, match="differ from their manifest"):
        list(checked(tensors, WeightManifest.of(TENSORS)))


def test_endpoints_number_the_workers_of_all_receivers() -> None:
    sender = WeightSender(timeout_s=1)
    first, second = sender.listen([Receiver(name="a", num_workers=2), Receiver(name="b")])
    assert (first.rank_offset, second.rank_offset, first.world_size) == (1, 3, 4)
    assert first.master_address == "127.0.0.1"
    sender.close()


def test_who_was_behind_is_named_and_not_who_was_done() -> None:
    listener = listen_on("127.0.0.1")
    port = listener.getsockname()[1]
    # Members of the store alone: nothing travels here.
    sender, done, other = (
        TransferGroup(
            address="127.0.0.1", port=port, rank=rank, world_size=3, timeout_s=4,
            listener=listener if rank == 0 else None,
        )
        for rank in range(3)
    )  # fmt: skip

    def push(ends: Callable[[int], None]) -> list[int]:
        number, *_ = [group.begin_push() for group in (sender, done, other)]
        done.report_done(number)
        other.report(number, "1")
        timer = threading.Timer(0.2, ends, [number])
        timer.start()
        culprits = sender.give_up(number)
        timer.join()
        return culprits

    assert push(other.report_done) == [2]  # late
    assert push(lambda number: other.report_lost(number, "no bytes")) == [2]
    assert push(lambda number: other.report_error(number, "no memory")) == [2]
    assert push(lambda number: None) == [2]
    for group in (sender, done, other):
        group.close()
