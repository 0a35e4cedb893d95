"""The student's weights as the outside sees them: whole, under Hugging Face names, a tied head once.

Under ZeRO-3 a rank holds a shard of each weight; here they are put together bucket by bucket. With
adapters, each is merged with its own while both are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from trd_ray.lora import NamedWeight, named_weights
from trd_ray.weights import TensorSpec, WeightManifest

GATHER_BUCKET_BYTES = 256 * 2**20
"""Weights that are put together at once."""


def manifest_of(model: nn.Module, *, dtype: str) -> WeightManifest:
    """Names and whole shapes of all weights, in the order of `gathered_weights`. Not collective.

    Adapters are not in it: it is that of the plain model.
    """
    return WeightManifest(
        tensors=tuple(
            TensorSpec(
                name=weight.name,
                dtype=dtype,
                shape=tuple(getattr(weight.base, "ds_shape", weight.base.shape)),
            )
            for weight in named_weights(model)
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
    for bucket in _buckets(named_weights(model), bucket_bytes=bucket_bytes):
        parts = [part for weight in bucket for part in weight.parts]
        with gathered(parts, zero_stage=zero_stage):
            for weight in bucket:
                yield weight.name, weight.merged()


def gathered(parameters: Sequence[nn.Parameter], *, zero_stage: int) -> AbstractContextManager[None]:
    """Within, the parameters are whole. Collective under ZeRO-3."""
    if zero_stage < 3:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters  # type: ignore[import-untyped]

    context: AbstractContextManager[None] = GatheredParameters(list(parameters))
    return context


def _buckets(weights: Sequence[NamedWeight], *, bucket_bytes: int) -> Iterator[list[NamedWeight]]:
    bucket: list[NamedWeight] = []
    size = 0
    for weight in weights:
        num_bytes = sum(_num_bytes(part) for part in weight.parts)
        if bucket and size + num_bytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append(weight)
        size += num_bytes
    if bucket:
        yield bucket


def _num_bytes(parameter: nn.Parameter) -> int:
    # Under ZeRO-3 `numel()` is that of what happens to be here; `ds_numel` is that of the whole.
    return int(getattr(parameter, "ds_numel", parameter.numel())) * parameter.element_size()
