"""Reading a vLLM model's weights back under their Hugging Face names.

vLLM fuses projections (`qkv_proj`, `gate_up_proj`) and, on CPUs, packs a linear layer's weight for
its kernel and drops the original. What is read here is what the layer computes with: a packed
layer is given the identity matrix, and answers with its weight. Each output is one weight times
one plus zeros, so it is exact up to the sign of zero and subnormal numbers, which the checksum
does not tell apart. Axis letters: N outputs, K inputs, V vocabulary, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from vllm.distributed import get_tp_group
from vllm.model_executor.layers.linear import ColumnParallelLinear, LinearBase, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

_IDENTITY_ROWS = 1024
"""Rows of the identity matrix multiplied at once."""


@torch.no_grad()
def named_weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (Hugging Face name, whole tensor) of each parameter; a tied head comes once.

    With tensor parallelism every worker must iterate, since shards are gathered.

    Raises:
        RuntimeError: the packed output head differs from the embedding that it was packed from,
            or a layer is quantised.
    """
    seen: set[int] = set()
    # A tied output head is a module of its own with the embedding's parameter.
    for path, module in model.named_modules():
        if isinstance(module, LinearBase):
            yield from _linear(model, path, module)
        elif isinstance(module, VocabParallelEmbedding):
            _check_packed_head(path, module)
            if id(module.weight) not in seen:
                seen.add(id(module.weight))
                yield (
                    f"{path}.weight",
                    _whole(cast("torch.Tensor", module.weight), 0, 1)[: module.org_vocab_size],
                )
        else:
            for name, parameter in module.named_parameters(recurse=False):
                yield f"{path}.{name}", parameter


def tied_heads(model: torch.nn.Module) -> list[VocabParallelEmbedding]:
    """Return the modules that share their rows with an embedding that comes before them."""
    seen: set[int] = set()
    heads = []
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            if id(module.weight) in seen:
                heads.append(module)
            seen.add(id(module.weight))
    return heads


def linear_parts(model: torch.nn.Module, path: str, layer: LinearBase) -> list[tuple[str, int]]:
    """Return (Hugging Face name, outputs on this worker) of each part of a layer, in the order of its rows.

    Raises:
        RuntimeError: the model names another number of parts than the layer has.
    """
    fused: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    parent, _, leaf = path.rpartition(".")
    names = [f"{parent}.{part}" for part in fused[leaf]] if leaf in fused else [path]
    sizes = list(cast("Any", layer.output_partition_sizes))
    if len(sizes) != len(names):
        raise RuntimeError(f"{path} has {len(sizes)} parts, expected {len(names)}: {names}")
    return list(zip(names, sizes, strict=True))


def _linear(model: torch.nn.Module, path: str, layer: LinearBase) -> Iterator[tuple[str, torch.Tensor]]:
    weight_NK = _linear_weight(path, layer)
    bias = getattr(layer, "bias", None)
    column = isinstance(layer, ColumnParallelLinear)
    row = isinstance(layer, RowParallelLinear)
    start = 0
    for name, size in linear_parts(model, path, layer):
        part_NK = weight_NK[start : start + size]
        copies = _copies(layer, name)
        yield f"{name}.weight", _whole(part_NK, 0 if column else 1 if row else None, copies)
        if bias is not None:
            # The CPU kernel of small layers keeps its bias in float32.
            part_N = bias[start : start + size].to(weight_NK.dtype)
            yield f"{name}.bias", _whole(part_N, 0 if column else None, copies)
        start += size


def _linear_weight(path: str, layer: LinearBase) -> torch.Tensor:
    """Return the [N, K] weight of this worker's shard: stored, or asked of the packed kernel."""
    weight = cast("torch.Tensor | None", getattr(layer, "weight", None))
    if weight is None or not weight.dtype.is_floating_point:
        raise RuntimeError(f"{path} is quantised; its weights cannot be compared with the learner's")
    if weight.numel() > 0:
        return weight
    return _through_kernel(layer, cast("int", layer.input_size_per_partition), weight.dtype)


def _through_kernel(layer: torch.nn.Module, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the [N, K] weight that the layer's kernel computes with."""
    identity_KK = torch.eye(width, dtype=dtype)
    kernel = cast("Any", layer.quant_method)  # torch types a module's attributes as modules
    parts = [kernel.apply(layer, rows, None) for rows in identity_KK.split(_IDENTITY_ROWS)]
    return torch.cat(parts).t()


def _check_packed_head(path: str, layer: VocabParallelEmbedding) -> None:
    """Compare the packed copy that makes logits with the stored rows that the embedding reads."""
    weight_VD = layer.weight
    if not hasattr(layer, "cpu_linear") or weight_VD.device.type != "cpu":
        return
    head_VD = _through_kernel(layer, weight_VD.shape[1], weight_VD.dtype)
    normal = weight_VD.abs() >= torch.finfo(weight_VD.dtype).tiny
    if not torch.equal(head_VD[normal], weight_VD[normal]):
        raise RuntimeError(f"{path}: the packed output head differs from the stored rows")


def _copies(layer: LinearBase, name: str) -> int:
    """Return on how many workers in a row the same key and value heads lie."""
    if name.rpartition(".")[2] in ("k_proj", "v_proj"):
        return int(getattr(layer, "num_kv_head_replicas", 1))
    return 1


def _whole(shard: torch.Tensor, dim: int | None, copies: int) -> torch.Tensor:
    """Gather the shards of all tensor-parallel workers along `dim`; None means not sharded."""
    group = get_tp_group()
    if dim is None or group.world_size == 1:
        return shard
    gathered = group.all_gather(shard.contiguous(), dim)
    if copies == 1:
        return gathered
    return torch.cat(list(gathered.chunk(group.world_size, dim))[::copies], dim)
