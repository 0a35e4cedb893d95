"""Divergence from hidden states: exact full-vocabulary values and gradients without `[N, V]`.

Logits of `chunk_size` tokens exist at a time, on either side. The backward pass recomputes the
student's logits once from the hidden states, which costs one more matrix product and saves the
memory of all of them.

Axis letters: N tokens, V vocabulary, D student width, Dt teacher width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from trd_ray.losses.divergences import divergence_from_logits
from trd_ray.losses.options import DivergenceOptions


def chunked_token_divergence(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    *,
    chunk_size: int,
    vocab_size: int | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    support: str = "full",
    top_k: int | None = None,
    renormalize: str = "teacher",
    tail: str = "drop",
    clip: str | None = None,
    clip_max: float | None = None,
) -> Tensor:
    """`token_divergence(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T)` -> `[N]`.

    Args:
        student_hidden: [N, D] final hidden states, after the final norm.
        student_head: [V or more, D] output head. Its gradient is summed in float32.
        teacher_hidden: [N, Dt].
        teacher_head: [V or more, Dt].
        chunk_size: tokens whose logits are held at once. 1 or more; does not change the result.
        vocab_size: V, the entries of the shared tokenizer; rows of a head beyond it are padding
            and are left out of both distributions. None: both heads have the same rows and none
            of them is padding.

    Returns:
        [N] divergences in nats, float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes do not agree; an option is unknown or not offered yet.
    """
    options = DivergenceOptions(
        divergence=divergence,
        beta=beta,
        support=support,
        top_k=top_k,
        renormalize=renormalize,
        tail=tail,
        clip=clip,
        clip_max=clip_max,
    )
    if chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}; expected 1 or more")
    _require_shapes(student_hidden, student_head, teacher_hidden, teacher_head)
    vocab = _vocab_size(len(student_head), len(teacher_head), vocab_size)
    values: Tensor = _ChunkedDivergence.apply(
        student_hidden, student_head, teacher_hidden, teacher_head, vocab, chunk_size, options
    )  # type: ignore[no-untyped-call]
    return values


class _ChunkedDivergence(torch.autograd.Function):
    """Saves its four inputs and nothing else.

    The whole head is an input, and its padding rows are cut inside: a parameter that ZeRO-3 has
    gathered for this module is released between the passes, and autograd keeps a leaf by
    reference, so that backward sees it gathered again. A slice made outside would keep the
    released storage alive.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        student_hidden: Tensor,
        student_head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        vocab: int,
        chunk_size: int,
        options: DivergenceOptions,
    ) -> Tensor:
        ctx.save_for_backward(student_hidden, student_head, teacher_hidden, teacher_head)
        ctx.fixed = (vocab, chunk_size, options)  # type: ignore[attr-defined]
        dtype = _compute_dtype(student_hidden, student_head, teacher_hidden, teacher_head)
        values = torch.empty(len(student_hidden), dtype=dtype, device=student_hidden.device)
        student_rows = _matmul_ready(student_head[:vocab], student_hidden)
        teacher_rows = _matmul_ready(teacher_head[:vocab], teacher_hidden)
        for start in range(0, len(student_hidden), chunk_size):
            chunk = slice(start, start + chunk_size)
            values[chunk] = divergence_from_logits(
                _product(student_hidden[chunk], student_rows.T),
                _product(teacher_hidden[chunk], teacher_rows.T),
                options=options,
            )
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        student_hidden, student_head, teacher_hidden, teacher_head = ctx.saved_tensors  # type: ignore[attr-defined]
        vocab, chunk_size, options = ctx.fixed  # type: ignore[attr-defined]
        needs_hidden, needs_head = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        student_rows = _matmul_ready(student_head[:vocab], student_hidden)
        teacher_rows = _matmul_ready(teacher_head[:vocab], teacher_hidden)
        grad_hidden = torch.empty_like(student_hidden) if needs_hidden else None
        grad_head = torch.zeros_like(student_head, dtype=grad_values.dtype) if needs_head else None
        for start in range(0, len(student_hidden), chunk_size):
            chunk = slice(start, start + chunk_size)
            hidden = student_hidden[chunk]
            grad_logits = _logits_gradient(
                _product(hidden, student_rows.T),
                _product(teacher_hidden[chunk], teacher_rows.T),
                grad_values[chunk],
                options,
            )
            if grad_hidden is not None:
                grad_hidden[chunk] = _product(grad_logits, student_rows).to(grad_hidden.dtype)
            if grad_head is not None:
                _add_product(grad_head[:vocab], grad_logits.T, hidden)
        if grad_head is not None:
            grad_head = grad_head.to(student_head.dtype)
        return grad_hidden, grad_head, None, None, None, None, None


def _logits_gradient(
    student_logits: Tensor, teacher_logits: Tensor, grad_values: Tensor, options: DivergenceOptions
) -> Tensor:
    """Gradient of sum(grad_values * divergence) to the student's logits of one chunk."""
    # The formula lives in one place: autograd differentiates the same function that forward used.
    with torch.enable_grad():
        leaf = student_logits.detach().requires_grad_()
        values = divergence_from_logits(leaf, teacher_logits, options=options)
        (gradient,) = torch.autograd.grad(values, leaf, grad_values)
    return gradient


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _matmul_ready(rows: Tensor, hidden: Tensor) -> Tensor:
    """`rows` in the format that `_product` multiplies `hidden` by, converted once for all chunks."""
    dtype = torch.promote_types(rows.dtype, hidden.dtype)
    if rows.is_cuda:
        return rows.to(dtype)
    return rows.to(torch.promote_types(dtype, torch.float32))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in float32 (float64 if `right` is), never rounded to 16 bits."""
    if right.is_cuda and right.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left.to(right.dtype), right, out_dtype=torch.float32)
    return left.to(right.dtype) @ right


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` in place, in the format of `total`."""
    if right.is_cuda and right.dtype in (torch.bfloat16, torch.float16):
        total += _product(left, right)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _require_shapes(
    student_hidden: Tensor, student_head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor
) -> None:
    shapes = {
        "student_hidden": tuple(student_hidden.shape),
        "student_head": tuple(student_head.shape),
        "teacher_hidden": tuple(teacher_hidden.shape),
        "teacher_head": tuple(teacher_head.shape),
    }
    agree = (
        all(len(shape) == 2 for shape in shapes.values())
        and shapes["student_hidden"][0] == shapes["teacher_hidden"][0]
        and shapes["student_hidden"][1] == shapes["student_head"][1]
        and shapes["teacher_hidden"][1] == shapes["teacher_head"][1]
    )
    if not agree:
        raise ValueError(f"chunked_token_divergence: got {shapes}; expected [N, D], [V, D], [N, Dt], [V, Dt]")


def _vocab_size(student_rows: int, teacher_rows: int, vocab_size: int | None) -> int:
    if vocab_size is None:
        if student_rows != teacher_rows:
            raise ValueError(
                f"vocab_size: not given, but the student's head has {student_rows} rows and the teacher's "
                f"{teacher_rows}; expected the size of the shared tokenizer"
            )
        return student_rows
    if not 1 <= vocab_size <= min(student_rows, teacher_rows):
        raise ValueError(
            f"vocab_size: got {vocab_size}; expected 1 to {min(student_rows, teacher_rows)}, "
            "the rows of the smaller head"
        )
    return vocab_size
