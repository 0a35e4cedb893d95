"""The receiving end of a push: what a worker does between the group and its model's loader.

Needs torch only, so that the protocol can be run and measured without an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from actors.weight_transfer_buckets import Bucket, plan_buckets, receive_buckets
from actors.weight_transfer_group import TransferGroup, TransferLostError
from trd_ray.weights import PushChecksum, WeightManifest

logger = logging.getLogger(__name__)

NamedTensors = Iterator[tuple[str, torch.Tensor]]
_NOT_LOADED = (RuntimeError, ValueError, LookupError, AttributeError, AssertionError, TypeError, OSError)
"""What vLLM's loaders raise for a wrong name or shape, and the system for memory that cannot be mapped."""


@contextmanager
def receiving(
    group: TransferGroup, manifest: WeightManifest, *, policy_version: int, bucket_bytes: int
) -> Iterator[NamedTensors]:
    """Take part in one push. Gives the tensors as they arrive; the block must take them all.

    Each is valid until this push has ended, and must not be written to. The version is compared with the
    sender's before a bucket is given, the checksum after it. After the block the sender hears that this rank
    is done, or why it is not. After any error the group is closed, since the ends disagree about what comes
    next.

    Raises:
        TransferLostError: the bytes did not come.
        RuntimeError: another version or checksum than the sender's, or the block left tensors.
    """
    push = group.begin_push()
    buckets = plan_buckets(manifest, bucket_bytes)
    whole: list[Bucket] = []
    try:
        group.report(push, "0")
        tensors = _arriving(group, push, PushChecksum(manifest), buckets, policy_version, whole)
        yield tensors
        # The last bucket is compared after its last tensor. An end of the tensors says nothing by itself: the
        # block may have closed them, or have swallowed their error.
        left = next(tensors, None)
        if left is not None or len(whole) < len(buckets):
            raise RuntimeError(
                f"the push was not taken as a whole: {len(whole)} of {len(buckets)} buckets were compared"
            )
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
    group: TransferGroup,
    push: int,
    checksum: PushChecksum,
    buckets: tuple[Bucket, ...],
    policy_version: int,
    whole: list[Bucket],
) -> NamedTensors:
    """Yield the tensors of each bucket as it arrives; one that agrees with its seal is put into `whole`."""
    for contents, seal in receive_buckets(group, buckets):
        if seal.policy_version != policy_version:
            raise RuntimeError(f"received policy version {seal.policy_version}, expected {policy_version}")
        for piece in contents.bucket.pieces:
            # Before they are taken: who takes small ones finds them in the core's cache.
            checksum.add(contents.raw[piece.start : piece.end])
            for entry in piece.entries:
                yield entry.spec.name, contents.tensor(entry)
        if seal.digest != checksum.digest():
            raise RuntimeError(
                f"received weights with checksum {checksum.digest().hex()}, the sender has "
                f"{seal.digest.hex()}, up to bucket {len(whole) + 1} of {len(buckets)}"
            )
        whole.append(contents.bucket)
        if len(whole) < len(buckets):
            group.report(push, str(len(whole)))


def _leave(group: TransferGroup, report: Callable[[], None]) -> None:
    try:
        report()
    except RuntimeError as error:
        logger.warning("the sender of a push is gone: %s", error)
    # Without its connections the sender need not wait out its limit.
    group.close()
