"""What a push is cut into, and what its checks find: damage, another version, tensors that nobody took."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
import torch

from actors.weight_transfer import WeightSender
from actors.weight_transfer_buckets import plan_buckets
from actors.weight_transfer_group import TransferGroup
from actors.weight_transfer_receive import receiving
from tests.actors.test_weight_transfer import TENSORS, open_group, receive
from trd_ray.errors import WeightSyncError
from trd_ray.weights import PushChecksum, TensorSpec, WeightManifest, checksum_named


def test_buckets_hold_each_tensor_once_aligned_and_within_the_limit() -> None:
    manifest = WeightManifest(
        tensors=tuple(
            TensorSpec(name=str(index), dtype="bfloat16", shape=(numel,))
            for index, numel in enumerate([3, 40, 500, 1, 0])
        )
    )
    buckets = plan_buckets(manifest, 200)
    entries = [[entry for piece in bucket.pieces for entry in piece.entries] for bucket in buckets]
    assert [[entry.spec.name for entry in row] for row in entries] == [["0", "1"], ["2"], ["3", "4"]]
    assert all(entry.offset % 64 == 0 for row in entries for entry in row)


def test_pieces_cover_a_bucket_without_a_gap_and_hold_small_tensors_together() -> None:
    sizes = [100, 100, 300_000, 1, 500_000, 7]
    specs = [TensorSpec(name=str(i), dtype="uint8", shape=(size,)) for i, size in enumerate(sizes)]
    (bucket,) = plan_buckets(WeightManifest(tensors=tuple(specs)), 2**20)
    names = [[entry.spec.name for entry in piece.entries] for piece in bucket.pieces]
    assert names == [["0", "1", "2"], ["3", "4"], ["5"]]
    ends = [piece.end for piece in bucket.pieces]
    assert [piece.start for piece in bucket.pieces] == [0, *ends[:-1]]
    assert ends[-1] == bucket.num_bytes


def test_a_push_of_nothing_still_carries_its_version() -> None:
    manifest = WeightManifest(tensors=())
    sender = WeightSender(timeout_s=20)
    with ThreadPoolExecutor(2) as pool:
        (group,) = open_group(sender, pool, ("only",))
        arriving = pool.submit(receive, group, manifest, 256, policy_version=4)
        with pytest.raises(WeightSyncError, match="received policy version 3, expected 4"):
            sender.send([], manifest, 3)
        with pytest.raises(RuntimeError, match="version 3"):
            arriving.result(timeout=10)


def refused_push(
    take: Callable[[Iterator[tuple[str, torch.Tensor]]], object], *, policy_version: int = 1
) -> tuple[str, str]:
    """Returns the errors of the sender and of a receiver that takes the tensors so."""
    manifest = WeightManifest.of(TENSORS)
    sender = WeightSender(timeout_s=20, bucket_bytes=256)

    def receive_so(group: TransferGroup) -> None:
        with receiving(group, manifest, policy_version=policy_version, bucket_bytes=256) as tensors:
            take(tensors)

    with ThreadPoolExecutor(2) as pool:
        (group,) = open_group(sender, pool, ("only",))
        arriving = pool.submit(receive_so, group)
        with pytest.raises(WeightSyncError) as at_sender:
            sender.send(TENSORS, manifest, 1)
        with pytest.raises(RuntimeError) as at_receiver:
            arriving.result(timeout=10)
    return str(at_sender.value), str(at_receiver.value)


def test_another_version_is_refused_before_a_tensor_is_given() -> None:
    given: list[object] = []
    errors = refused_push(given.extend, policy_version=2)
    assert all("received policy version 1, expected 2" in error for error in errors)
    assert not given


def close(tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    next(tensors)
    cast("Generator[object]", tensors).close()


def swallow(tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    with contextlib.suppress(RuntimeError):
        list(tensors)


@pytest.mark.parametrize(("take", "version"), [(next, 1), (close, 1), (swallow, 2)])
def test_a_push_that_was_not_taken_as_a_whole_is_an_error(take: Callable[..., object], version: int) -> None:
    errors = refused_push(take, policy_version=version)
    assert all("not taken as a whole: 0 of 2 buckets were compared" in error for error in errors)


@pytest.mark.parametrize("shared_memory", [True, False], ids=["memory", "gloo"])
@pytest.mark.parametrize(("bucket", "byte"), [(0, 5), (0, 30), (1, 5)], ids=["first", "gap", "last"])
def test_one_damaged_bit_is_found_in_its_bucket(
    shared_memory: bool, bucket: int, byte: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = WeightManifest.of(TENSORS)
    plan = plan_buckets(manifest, 256)
    broadcast, sent = TransferGroup.broadcast, itertools.count()

    def damaged(self: TransferGroup, message: torch.Tensor) -> torch.distributed.Work:
        if self.rank == 0 and next(sent) == bucket:
            where = message if self.memory is None else self.memory.write(plan[-1].end)[plan[bucket].start :]
            where[byte] ^= 1
        return broadcast(self, message)

    monkeypatch.setattr(TransferGroup, "broadcast", damaged)
    sender = WeightSender(timeout_s=20, bucket_bytes=256, shared_memory=shared_memory)
    with ThreadPoolExecutor(2) as pool:
        (group,) = open_group(sender, pool, ("only",))
        arriving = pool.submit(receive, group, manifest, 256)
        with pytest.raises(WeightSyncError, match=rf"only.*with checksum.*up to bucket {bucket + 1} of 2"):
            sender.send(TENSORS, manifest, 1)
        with pytest.raises(RuntimeError, match="with checksum"):
            arriving.result(timeout=10)


def test_the_checksum_of_a_push_sees_manifest_bytes_and_order_but_not_how_they_are_cut() -> None:
    manifest = WeightManifest.of(TENSORS)
    raw = torch.arange(200, dtype=torch.uint8)

    def digest(*parts: torch.Tensor, of: WeightManifest = manifest) -> bytes:
        checksum = PushChecksum(of)
        for part in parts:
            checksum.add(part)
        return checksum.digest()

    whole = digest(raw)
    assert len(whole) == PushChecksum.SIZE
    assert digest(raw[:7], raw[7:7], raw[7:]) == whole
    flipped = raw.clone()
    flipped[199] ^= 128
    renamed = WeightManifest.of([("B", TENSORS[0][1]), *TENSORS[1:]])
    others = [digest(flipped), digest(raw[:199]), digest(raw[7:], raw[:7]), digest(raw, of=renamed)]
    others += [digest(raw, of=WeightManifest.of(TENSORS, dtype="float16")), digest(raw, raw)]
    assert len({whole, *others}) == 1 + len(others)


def test_the_checksum_sees_names_shapes_dtypes_and_values_but_not_order() -> None:
    reference = checksum_named(TENSORS)
    assert checksum_named(reversed(TENSORS)) == reference
    changed = TENSORS[2][1].clone()
    changed[7] += 1e-3
    others = [
        [("B", TENSORS[0][1]), *TENSORS[1:]],
        [("b", TENSORS[0][1].reshape(3, 2)), *TENSORS[1:]],
        [("b", TENSORS[0][1].double()), *TENSORS[1:]],
        [*TENSORS[:2], ("c", changed)],
        TENSORS[:2],
    ]
    checksums = {checksum_named(tensors) for tensors in others}
    assert len(checksums) == len(others)
    assert reference not in checksums


def test_the_checksum_counts_zeros_of_both_signs_and_subnormals_as_one() -> None:
    zero = checksum_named([("w", torch.zeros(3))])
    assert checksum_named([("w", torch.tensor([-0.0, 1e-42, 0.0]))]) == zero
    assert checksum_named([("w", torch.tensor([-0.0, 1e-30, 0.0]))]) != zero
