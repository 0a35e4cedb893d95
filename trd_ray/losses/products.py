"""Logits from hidden states and a head, and the two products of their gradient, never in 16 bits.

On a GPU 16-bit operands are multiplied as they are, with float32 sums; elsewhere they are converted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trd_ray.losses.objective import LogitTransform


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float32, or float64 if any of the tensors is."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def matmul_ready(rows: Tensor, hidden: Tensor) -> Tensor:
    """`rows` in the format that `product` multiplies `hidden` by, converted once for all chunks."""
    dtype = torch.promote_types(rows.dtype, hidden.dtype)
    if rows.is_cuda:
        return rows.to(dtype)
    return rows.to(torch.promote_types(dtype, torch.float32))


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """`left @ right` in float32 (float64 if `right` is); in `out` where that is possible."""
    if right.is_cuda and right.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    if out is None or out.dtype != right.dtype:
        return left.to(right.dtype) @ right
    return torch.mm(left.to(right.dtype), right, out=out)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` in place, in the format of `total`."""
    if right.is_cuda and right.dtype in (torch.bfloat16, torch.float16):
        total += product(left, right)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def transform_logits(logits: Tensor, transform: LogitTransform, slope: Tensor | None = None) -> None:
    """Apply an architecture's transform in place.

    Args:
        logits: [N, V].
        slope: [N, V], overwritten with the derivative if the transform has a soft-cap; None if it is
            not needed.
    """
    if transform.scale != 1.0:
        logits.mul_(transform.scale)
    if transform.softcap is not None:
        logits.div_(transform.softcap).tanh_()
        if slope is not None:
            # d softcap tanh(scale x / softcap) / dx = scale (1 - tanh^2)
            torch.mul(logits, logits, out=slope).neg_().add_(1.0).mul_(transform.scale)
        logits.mul_(transform.softcap)


def transform_gradient(gradient: Tensor, transform: LogitTransform, slope: Tensor | None) -> None:
    """Turn a gradient to the transformed logits into one to the product, in place."""
    if slope is not None:
        gradient.mul_(slope)
    elif transform.scale != 1.0:
        gradient.mul_(transform.scale)
