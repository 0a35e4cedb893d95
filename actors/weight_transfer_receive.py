"""The receiving end of a push: what a worker does between the group and its model's loader.

Needs torch only, so that the protocol can be run and measured without an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from actors.weight_transfer_buckets import Bucket, bucket_view, plan_buckets, receive_buckets
from actors.weight_transfer_group import TRAILER_BYTES, TransferGroup, TransferLostError
from trd_ray.weights import WeightChecksum, WeightManifest

logger = logging.getLogger(__name__)

NamedTensors = Iterator[tuple[str, torch.Tensor]]
_NOT_LOADED = (RuntimeError, ValueError, LookupError, AttributeError, AssertionError, TypeError, OSError)
"""What vLLM's loaders raise for a wrong name or shape, and the system for memory that cannot be mapped."""


@contextmanager
def receiving(
    group: TransferGroup, manifest: WeightManifest, *, policy_version: int, bucket_bytes: int
) -> Iterator[NamedTensors]:
    """Take part in one push. Gives the tensors as they arrive; the block must take them all.

    Each is valid until this push has ended, and must not be written to. After the block the version and
    the checksum are compared with the sender's, who then hears that this rank is done, or why it is not.
    After any error the group is closed, since the ends disagree about what comes next.

    Raises:
        TransferLostError: the bytes did not come.
        RuntimeError: another version or checksum than the sender's.
    """
    push = group.begin_push()
    checksum = WeightChecksum()
    try:
        group.report(push, "0")
        yield _arriving(group, push, plan_buckets(manifest, bucket_bytes), checksum)
        _compare_trailer(group, checksum, policy_version)
        group.report_done(push)
    except TransferLostError as error:
        message = str(error)
        _leave(group, lambda: group.report_lost(push, message))
        raise
    except _NOT_LOADED as error:
        # The sender shall know why.
        message = f"{type(error).__name__}: {error}"
        _leave(group, lambda: group.report_error(push, message))
        raise


def _arriving(
    group: TransferGroup, push: int, buckets: tuple[Bucket, ...], checksum: WeightChecksum
) -> NamedTensors:
    """Yield the tensors of each bucket as it arrives."""
    arrived = receive_buckets(group, buckets)
    for index, (bucket, buffer) in enumerate(zip(buckets, arrived, strict=True), start=1):
        for entry in bucket.entries:
            tensor = bucket_view(buffer, entry)
            checksum.add_bytes(entry.spec.name, tensor)
            yield entry.spec.name, tensor
        group.report(push, str(index))


def _compare_trailer(group: TransferGroup, checksum: WeightChecksum, policy_version: int) -> None:
    trailer = torch.empty(TRAILER_BYTES, dtype=torch.uint8)
    group.finish(group.broadcast(trailer))
    raw = bytes(trailer.tolist())
    version, digest = int.from_bytes(raw[:-32], "little"), raw[-32:]
    if version != policy_version:
        raise RuntimeError(f"received policy version {version}, expected {policy_version}")
    if digest != checksum.digest():
        raise RuntimeError(
            f"received weights with checksum {checksum.hexdigest()}, the sender has {digest.hex()}"
        )


def _leave(group: TransferGroup, report: Callable[[], None]) -> None:
    try:
        report()
    except RuntimeError as error:
        logger.warning("the sender of a push is gone: %s", error)
    # Without its connections the sender need not wait out its limit.
    group.close()
