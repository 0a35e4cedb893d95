"""The loss from hidden states: exact full-vocabulary values and gradients without `[N, V]`.

Logits of `chunk_size` tokens exist at a time, on either side, and the student's become their gradient
in place. Products want many rows at once, since each reads the whole head; the arithmetic between
them does not care, and so takes few, whose intermediate values need little room.

- `chunked_objective` knows the weight of each token, so it makes the gradients in the forward pass,
  chunk by chunk, from the logits that it has anyway.
- `chunked_token_divergence` does not, so its backward pass makes the logits once more.

Axis letters: N tokens, V vocabulary, D student width, Dt teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from trd_ray.losses.divergences import divergence_of_logits
from trd_ray.losses.objective import (
    HiddenTeacher,
    LogitTransform,
    ObjectiveOutput,
    TeacherSide,
    TokenBatch,
    TopKTeacher,
    check_objective,
)
from trd_ray.losses.options import DivergenceOptions, ObjectiveOptions
from trd_ray.losses.products import (
    add_product,
    compute_dtype,
    matmul_ready,
    product,
    transform_gradient,
    transform_logits,
)
from trd_ray.losses.rows import (
    Buffers,
    RowTerms,
    TeacherRows,
    teacher_from_logits,
    teacher_from_top_k,
    token_terms,
)

ENTRIES_AT_ONCE = 2**22
"""Size of the `[n, V]` intermediate values that exist at a time; 27 tokens of 151,936 entries. Fewer
would be eaten up by the cost of a call, more would only cost memory."""


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
        ValueError: shapes do not agree; an option is unknown, contradicts another or looks at tokens.
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
    teacher = HiddenTeacher(hidden=teacher_hidden, head=teacher_head)
    _require_shapes("chunked_token_divergence", student_hidden, student_head, teacher)
    job = _Job(
        teacher=teacher,
        tokens=None,
        options=divergence_of_logits(options),
        chunk_size=_chunk_size(chunk_size),
        vocab_size=_vocab_size(len(student_head), len(teacher_head), vocab_size),
        transform=LogitTransform(),
        makes_gradients=False,
    )
    values: Tensor = _ChunkedDivergence.apply(student_hidden, student_head, teacher_hidden, teacher_head, job)  # type: ignore[no-untyped-call]
    return values


def chunked_objective(
    student_hidden: Tensor,
    student_head: Tensor,
    teacher: TeacherSide,
    tokens: TokenBatch,
    *,
    options: ObjectiveOptions,
    chunk_size: int,
    vocab_size: int,
    transform: LogitTransform = LogitTransform(),  # noqa: B008 (frozen)
) -> ObjectiveOutput:
    """The weighted sum of the tokens' values, with its gradients made in the same pass.

    value = divergence (clipped as the options say) + gate.coef * 1[H(q) > threshold] * forward KL over
    the teacher's top k + reward.coef * clipped policy loss; loss = sum over tokens of weight * value.

    The backward pass multiplies by the incoming scalar and reads neither head. Where that scalar is 1
    it copies nothing, so put every factor of the loss into the weights.

    Args:
        student_hidden: [N, D] final hidden states, after the final norm. N may be 0.
        student_head: [V or more, D] output head. Its gradient is summed in float32.
        teacher: hidden states and head, or precomputed log-probabilities; None for nll and none.
        tokens: the tokens and their weights.
        chunk_size: tokens whose logits are held at once. 1 or more; does not change the result.
        vocab_size: V, the entries of the shared tokenizer; rows of a head beyond it are padding.
        transform: of the student's logits; the teacher's is part of `teacher`.

    Raises:
        ValueError: shapes do not agree; something that the options need is missing.
    """
    side = teacher if isinstance(teacher, HiddenTeacher) else None
    _require_shapes("chunked_objective", student_hidden, student_head, side)
    check_objective(len(student_hidden), teacher, tokens, options)
    job = _Job(
        teacher=teacher if options.needs_teacher else None,
        tokens=tokens,
        options=options,
        chunk_size=_chunk_size(chunk_size),
        vocab_size=_vocab_size(len(student_head), len(side.head if side else student_head), vocab_size),
        transform=transform,
        makes_gradients=torch.is_grad_enabled(),
    )
    loss, values, logprobs = _Objective.apply(student_hidden, student_head, job)  # type: ignore[no-untyped-call]
    return ObjectiveOutput(loss=loss, token_values=values, student_logprobs=logprobs)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that one call is asked for, but the tensors that it differentiates."""

    teacher: TeacherSide
    tokens: TokenBatch | None
    options: ObjectiveOptions
    chunk_size: int
    vocab_size: int
    transform: LogitTransform
    makes_gradients: bool


class _Chunks:
    """One walk over the tokens: logits into kept buffers, gradients into sums."""

    def __init__(self, job: _Job, hidden: Tensor, head: Tensor, teacher: TeacherSide) -> None:
        self._job = job
        self._hidden = hidden
        self._rows = matmul_ready(head[: job.vocab_size], hidden)
        self._teacher = teacher
        hidden_side = [teacher.hidden, teacher.head] if isinstance(teacher, HiddenTeacher) else []
        self.dtype = compute_dtype(hidden, head, *hidden_side)
        if isinstance(teacher, HiddenTeacher):
            self._teacher_rows = matmul_ready(teacher.head[: job.vocab_size], teacher.hidden)
        most = min(job.chunk_size, max(1, len(hidden)))
        vocab, device = job.vocab_size, hidden.device
        self._logits_room = Buffers(rows=most, vocab=vocab, dtype=self.dtype, device=device)
        self._few = min(most, max(1, ENTRIES_AT_ONCE // vocab))
        self._work = Buffers(rows=self._few, vocab=vocab, dtype=self.dtype, device=device)
        self.grad_hidden: Tensor | None = None
        self.grad_head: Tensor | None = None

    def collect_gradients(self, head: Tensor, *, hidden: bool, of_head: bool) -> None:
        if hidden:
            self.grad_hidden = torch.empty_like(self._hidden)
        if of_head:
            self.grad_head = torch.zeros_like(head, dtype=self.dtype)

    def slices(self) -> list[slice]:
        return [slice(i, i + self._job.chunk_size) for i in range(0, len(self._hidden), self._job.chunk_size)]

    def terms(self, chunk: slice, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Values [n] of one chunk and, if it has tokens, their log-probabilities [n].

        With weights [n], the gradients of the chunk are added to the sums.
        """
        hidden = self._hidden[chunk]
        logits = self._logits(hidden, self._rows, "student")
        teacher_logits = None
        if isinstance(self._teacher, HiddenTeacher):
            teacher_logits = self._logits(self._teacher.hidden[chunk], self._teacher_rows, "teacher")
        made = []
        for start in range(0, len(hidden), self._few):
            rows = slice(start, min(start + self._few, len(hidden)))
            whole = slice(chunk.start + rows.start, chunk.start + rows.stop)
            made.append(
                self._row_terms(
                    whole,
                    logits[rows],
                    None if teacher_logits is None else teacher_logits[rows],
                    None if weights is None else weights[rows],
                )
            )
        if weights is not None:
            self._add(chunk, hidden, logits)  # which hold the gradient now
        logprobs = [terms.target_logprobs for terms in made if terms.target_logprobs is not None]
        return torch.cat([terms.values for terms in made]), torch.cat(logprobs) if logprobs else None

    def _row_terms(
        self, whole: slice, logits: Tensor, teacher_logits: Tensor | None, weights: Tensor | None
    ) -> RowTerms:
        """Of a few rows; the logits become their gradient if there are weights."""
        job = self._job
        tokens = None if job.tokens is None else _rows_of(job.tokens, whole, self.dtype)
        teacher = TeacherRows()
        if isinstance(self._teacher, TopKTeacher):
            teacher = teacher_from_top_k(
                self._teacher,
                whole,
                options=job.options.divergence,
                vocab_size=job.vocab_size,
                dtype=self.dtype,
            )
        elif self._teacher is not None and teacher_logits is not None:
            transform_logits(teacher_logits, self._teacher.transform)
            target_ids = None if tokens is None else tokens.target_ids
            teacher = teacher_from_logits(teacher_logits, target_ids, options=job.options, buffers=self._work)
        slope = None
        if weights is not None and job.transform.softcap is not None:
            slope = self._work.get("transform", len(logits))
        transform_logits(logits, job.transform, slope)
        terms = token_terms(logits, teacher, tokens, weights, options=job.options, buffers=self._work)
        if terms.gradient is not None:
            transform_gradient(terms.gradient, job.transform, slope)
        return terms

    def _add(self, chunk: slice, hidden: Tensor, gradient: Tensor) -> None:
        if self.grad_hidden is not None:
            self.grad_hidden[chunk] = product(gradient, self._rows).to(self.grad_hidden.dtype)
        if self.grad_head is not None:
            add_product(self.grad_head[: self._job.vocab_size], gradient.T, hidden)

    def _logits(self, hidden: Tensor, rows: Tensor, name: str) -> Tensor:
        return product(hidden, rows.T, out=self._logits_room.get(name, len(hidden))).to(self.dtype)


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
        job: _Job,
    ) -> Tensor:
        ctx.save_for_backward(student_hidden, student_head, teacher_hidden, teacher_head)
        ctx.job = job  # type: ignore[attr-defined]
        walk = _Chunks(
            job, student_hidden, student_head, HiddenTeacher(hidden=teacher_hidden, head=teacher_head)
        )
        values = torch.empty(len(student_hidden), dtype=walk.dtype, device=student_hidden.device)
        for chunk in walk.slices():
            values[chunk], _ = walk.terms(chunk, None)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        student_hidden, student_head, teacher_hidden, teacher_head = ctx.saved_tensors  # type: ignore[attr-defined]
        needs_hidden, needs_head = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        teacher = HiddenTeacher(hidden=teacher_hidden, head=teacher_head)
        walk = _Chunks(ctx.job, student_hidden, student_head, teacher)  # type: ignore[attr-defined]
        walk.collect_gradients(student_head, hidden=needs_hidden, of_head=needs_head)
        for chunk in walk.slices():
            walk.terms(chunk, grad_values[chunk])
        grad_head = None if walk.grad_head is None else walk.grad_head.to(student_head.dtype)
        return walk.grad_hidden, grad_head, None, None, None


class _Objective(torch.autograd.Function):
    """Saves the two gradients, and neither head: ZeRO-3 may release one after the forward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, student_hidden: Tensor, student_head: Tensor, job: _Job
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_head = (job.makes_gradients and needed for needed in ctx.needs_input_grad[:2])  # type: ignore[attr-defined]
        tokens = job.tokens
        assert tokens is not None
        walk = _Chunks(job, student_hidden, student_head, job.teacher)
        walk.collect_gradients(student_head, hidden=needs_hidden, of_head=needs_head)
        weights = tokens.weights.to(walk.dtype)
        values, logprobs = torch.empty_like(weights), torch.empty_like(weights)
        for chunk in walk.slices():
            some = weights[chunk] if needs_hidden or needs_head else None
            values[chunk], of_targets = walk.terms(chunk, some)
            assert of_targets is not None
            logprobs[chunk] = of_targets
        ctx.save_for_backward(walk.grad_hidden, walk.grad_head)  # type: ignore[arg-type]
        ctx.head_dtype = student_head.dtype  # type: ignore[attr-defined]
        ctx.mark_non_differentiable(values, logprobs)
        # A token of weight 0 adds nothing, also if its divergence is infinite.
        return torch.where(weights == 0, 0.0, weights * values).sum(), values, logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_head = ctx.saved_tensors  # type: ignore[attr-defined]
        if grad_loss != 1:
            grad_hidden = None if grad_hidden is None else (grad_hidden * grad_loss).to(grad_hidden.dtype)
            grad_head = None if grad_head is None else grad_head * grad_loss
        if grad_head is not None:
            grad_head = grad_head.to(ctx.head_dtype)  # type: ignore[attr-defined]
        return grad_hidden, grad_head, None


def _rows_of(tokens: TokenBatch, chunk: slice, dtype: torch.dtype) -> TokenBatch:
    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[chunk].to(dtype)

    return TokenBatch(
        target_ids=tokens.target_ids[chunk],
        weights=tokens.weights[chunk],
        rollout_logprobs=cut(tokens.rollout_logprobs),
        advantages=cut(tokens.advantages),
    )


def _require_shapes(where: str, hidden: Tensor, head: Tensor, teacher: HiddenTeacher | None) -> None:
    shapes = {"student_hidden": tuple(hidden.shape), "student_head": tuple(head.shape)}
    if teacher is not None:
        shapes |= {"teacher_hidden": tuple(teacher.hidden.shape), "teacher_head": tuple(teacher.head.shape)}
    agree = all(len(shape) == 2 for shape in shapes.values()) and hidden.shape[1] == head.shape[1]
    if agree and teacher is not None:
        agree = len(teacher.hidden) == len(hidden) and teacher.hidden.shape[1] == teacher.head.shape[1]
    if not agree:
        expected = "[N, D], [V, D]" + (", [N, Dt], [V, Dt]" if teacher is not None else "")
        raise ValueError(f"{where}: got {shapes}; expected {expected}")


def _chunk_size(chunk_size: int) -> int:
    if chunk_size < 1:
        raise ValueError(f"chunk_size: got {chunk_size}; expected 1 or more")
    return chunk_size


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
