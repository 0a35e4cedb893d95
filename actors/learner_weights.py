"""The student's weights as the outside sees them: whole, under Hugging Face names, a tied head once.

Under ZeRO-3 a rank holds a shard of each weight; here they are put together bucket by bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from trd_ray.weights import TensorSpec, WeightManifest

GATHER_BUCKET_BYTES = 256 * 2**20
"""Weights that are put together at once."""


def manifest_of(model: nn.Module, *, dtype: str) -> WeightManifest:
    """Names and whole shapes of all weights, in the order of `gathered_weights`. Not collective."""
    return WeightManifest(
        tensors=tuple(
            TensorSpec(name=name, dtype=dtype, shape=tuple(getattr(parameter, "ds_shape", parameter.shape)))
            for name, parameter in model.named_parameters()
        )
    )


def gathered_weights(
    model: nn.Module, *, zero_stage: int, bucket_bytes: int = GATHER_BUCKET_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """(name, whole tensor) of each weight; a tensor is valid until the next is taken.

    Collective under ZeRO-3: every rank must take every weight.

    Args:
        bucket_bytes: most weights put together at once; a larger one goes alone.
    """
    for bucket in _buckets(model, bucket_bytes=bucket_bytes):
        with _gather([parameter for _, parameter in bucket], zero_stage=zero_stage):
            for name, parameter in bucket:
                yield name, parameter.detach()


def _gather(parameters: list[nn.Parameter], *, zero_stage: int) -> AbstractContextManager[None]:
    if zero_stage < 3:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters  # type: ignore[import-untyped]

    context: AbstractContextManager[None] = GatheredParameters(parameters)
    return context


def _buckets(model: nn.Module, *, bucket_bytes: int) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in model.named_parameters():
        # Under ZeRO-3 `numel()` is that of what happens to be here; `ds_numel` is that of the whole.
        num_bytes = int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()
        if bucket and size + num_bytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += num_bytes
    if bucket:
        yield bucket
