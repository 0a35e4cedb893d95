"""Values and gradients of a few tokens from their logits: what all public functions are made of.

Only three or four `[N, V]` buffers exist, and each step overwrites the one it no longer needs. The
student enters a loss through a few log-probabilities (of the token, of the teacher's top k, of what
lies outside) and, with full support, through one divergence a token. Autograd differentiates the
small part, `[N, K]`, to those; the last step, to the logits, is here:

    d log p_u / d z_v = [u = v] - p_v

Axis letters: N tokens of a chunk, V vocabulary, K entries of a top-k support.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trd_ray.losses.custom import custom_terms
from trd_ray.losses.entries import differentiable_entries, entry_terms, needs_second_spare
from trd_ray.losses.estimators import clipped_policy_loss, sampled_divergence
from trd_ray.losses.objective import TokenBatch, TopKTeacher
from trd_ray.losses.options import DivergenceOptions, ObjectiveOptions
from trd_ray.losses.supports import TopK, rest_logprob, top_k_divergence, top_k_given, top_k_of


class Buffers:
    """Room for `[rows, V]` numbers, kept from chunk to chunk: new memory costs a page fault each."""

    def __init__(self, *, rows: int, vocab: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (rows, vocab)
        self._dtype = dtype
        self._device = device
        self._tensors: dict[str, Tensor] = {}

    def get(self, name: str, num: int) -> Tensor:
        """[num, V] of any content."""
        if name not in self._tensors:
            self._tensors[name] = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return self._tensors[name][:num]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRows:
    """What the loss needs of the teacher at the tokens of a chunk."""

    logprobs: Tensor | None = None
    """[N, V] for full support; overwritten by `token_terms`."""
    topk: TopK | None = None
    token_logprobs: Tensor | None = None
    """[N] of the trajectory's own tokens."""
    gate: TopK | None = None
    gate_open: Tensor | None = None
    """[N] bool, where the gated term counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTerms:
    """What comes out of a chunk."""

    values: Tensor
    """[N]."""
    target_logprobs: Tensor | None
    """[N] of the trajectory's own tokens; None if they were not given."""
    gradient: Tensor | None
    """[N, V] of sum(weights * values) to the student's logits, in the buffer of the logits."""


@dataclass(slots=True)
class _Student:
    """The numbers through which the student enters the loss, as leaves for autograd."""

    target: Tensor | None = None
    topk: Tensor | None = None
    tail: Tensor | None = None
    gate: Tensor | None = None
    full: Tensor | None = None
    """[N] divergence over the full vocabulary."""

    def require_grad(self) -> list[str]:
        names = [name for name in self.__slots__ if getattr(self, name) is not None]
        for name in names:
            getattr(self, name).requires_grad_()
        return names


def teacher_from_logits(
    logits: Tensor, target_ids: Tensor | None, *, options: ObjectiveOptions, buffers: Buffers
) -> TeacherRows:
    """From `[N, V]` logits, which are overwritten."""
    wanted = options.divergence
    logprobs = torch.log_softmax(logits, dim=-1, out=logits)
    spare = buffers.get("work", len(logits))
    full = wanted.compares and wanted.support == "full"
    gate, gate_open = None, None
    if options.gate is not None:
        gate = top_k_of(logprobs, k=options.gate.top_k, tail=False, spare=spare)
        gate_open = entropy(logprobs, spare) > options.gate.threshold
    topk = None
    if wanted.support == "top_k":
        assert wanted.top_k is not None
        topk = top_k_of(logprobs, k=wanted.top_k, tail=wanted.tail == "bucket", spare=spare)
    return TeacherRows(
        logprobs=logprobs if full else None,
        topk=topk,
        token_logprobs=None if target_ids is None else logprobs.gather(1, target_ids[:, None])[:, 0],
        gate=gate,
        gate_open=gate_open,
    )


def teacher_from_top_k(
    teacher: TopKTeacher, rows: slice, *, options: DivergenceOptions, vocab_size: int, dtype: torch.dtype
) -> TeacherRows:
    """From precomputed log-probabilities of the tokens `rows`."""
    topk = None
    if options.support == "top_k":
        assert options.top_k is not None
        topk = top_k_given(
            teacher.topk_ids[rows],
            teacher.topk_logprobs[rows].to(dtype),
            k=options.top_k,
            tail=options.tail == "bucket",
            vocab_size=vocab_size,
        )
    return TeacherRows(topk=topk, token_logprobs=teacher.token_logprobs[rows].to(dtype))


def entropy(logprobs: Tensor, spare: Tensor) -> Tensor:
    """-sum_v q_v log q_v in nats, `[N, V]` -> `[N]`. `spare` [N, V] is overwritten."""
    torch.exp(logprobs, out=spare)
    # -inf becomes the least finite number, whose probability is 0 as well.
    return -spare.mul_(logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def token_terms(
    logits: Tensor,
    teacher: TeacherRows,
    tokens: TokenBatch | None,
    weights: Tensor | None,
    *,
    options: ObjectiveOptions,
    buffers: Buffers,
) -> RowTerms:
    """Values of a chunk's tokens and, if weights are given, the gradient of their weighted sum.

    Args:
        logits: [N, V] of the student, float32 or float64; overwritten.
        tokens: the chunk's tokens, weights not used; None for a divergence that looks at none.
        weights: [N] upstream gradient of each value; None if no gradient is needed.
    """
    num = len(logits)
    logprobs = torch.log_softmax(logits, dim=-1, out=logits)
    student = _Student()
    if tokens is not None:
        student.target = logprobs.gather(1, tokens.target_ids[:, None])[:, 0]
    if teacher.topk is not None:
        student.topk = logprobs.gather(1, teacher.topk.ids)
        if teacher.topk.tail is not None:
            student.tail = rest_logprob(logprobs, teacher.topk.ids, buffers.get("work", num))
    if teacher.gate is not None:
        student.gate = logprobs.gather(1, teacher.gate.ids)
    slope = None
    if teacher.logprobs is not None and options.divergence.function is not None:
        student.full, slope = custom_terms(teacher.logprobs, logprobs, options.divergence.function)
    elif teacher.logprobs is not None:
        second = buffers.get("work2", num) if needs_second_spare(options.divergence) else None
        spare = (buffers.get("work", num), second)
        parts, slope = entry_terms(teacher.logprobs, logprobs, options=options.divergence, spare=spare)
        student.full = parts.sum(dim=-1)
    target_logprobs = None if student.target is None else student.target.clone()
    if weights is None:
        values = _token_values(student, teacher, tokens, options, num=num, like=logprobs)
        return RowTerms(values=values, target_logprobs=target_logprobs, gradient=None)
    with torch.enable_grad():
        names = student.require_grad()
        values = _token_values(student, teacher, tokens, options, num=num, like=logprobs)
        leaves = [getattr(student, name) for name in names]
        found: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if values.requires_grad:
            found = torch.autograd.grad(values, leaves, weights, allow_unused=True)
    gradients = _Student(**dict(zip(names, found, strict=True)))
    gradient = _logits_gradient(logprobs, slope, gradients, teacher, tokens, buffers)
    return RowTerms(values=values.detach(), target_logprobs=target_logprobs, gradient=gradient)


def _token_values(
    student: _Student,
    teacher: TeacherRows,
    tokens: TokenBatch | None,
    options: ObjectiveOptions,
    *,
    num: int,
    like: Tensor,
) -> Tensor:
    """[N] value of each token: the sum of the configured terms."""
    value = like.new_zeros(num)
    if options.divergence.divergence != "none":
        value = value + clip_tokens(
            _divergence(student, teacher, tokens, options.divergence), options.divergence
        )
    if options.gate is not None:
        assert teacher.gate is not None and teacher.gate_open is not None and student.gate is not None
        gated = gate_divergence(teacher.gate, student.gate)
        # Where the gate is shut nothing of an infinite divergence may remain.
        value = value + options.gate.coef * torch.where(teacher.gate_open, gated, 0.0)
    if options.reward is not None:
        assert tokens is not None and student.target is not None
        assert tokens.rollout_logprobs is not None and tokens.advantages is not None
        value = value + options.reward.coef * clipped_policy_loss(
            student.target, tokens.rollout_logprobs, tokens.advantages, clip=options.reward.clip
        )
    return value


def _divergence(
    student: _Student, teacher: TeacherRows, tokens: TokenBatch | None, options: DivergenceOptions
) -> Tensor:
    if options.divergence == "nll":
        assert student.target is not None
        return -student.target
    if options.support == "full":
        assert student.full is not None
        return student.full
    if options.support == "top_k":
        assert teacher.topk is not None and student.topk is not None
        return top_k_divergence(teacher.topk, student.topk, student.tail, options)
    assert tokens is not None and student.target is not None and teacher.token_logprobs is not None
    return sampled_divergence(
        student.target, teacher.token_logprobs, tokens.rollout_logprobs, options=options
    )


def clip_tokens(values: Tensor, options: DivergenceOptions) -> Tensor:
    """min(value, clip_max) of each token for clip `token`, else the values. `[N]` -> `[N]`."""
    return values.clamp(max=options.clip_max) if options.clip == "token" else values


def gate_divergence(teacher: TopK, student_logprobs: Tensor) -> Tensor:
    """Forward KL over the teacher's top k, the teacher alone rescaled to sum to 1. `[N, K]` -> `[N]`."""
    log_q = teacher.logprobs - torch.logsumexp(teacher.logprobs, dim=-1, keepdim=True)
    return differentiable_entries(log_q, student_logprobs, DivergenceOptions()).sum(dim=-1)


def _logits_gradient(
    logprobs: Tensor,
    slope: Tensor | None,
    found: _Student,
    teacher: TeacherRows,
    tokens: TokenBatch | None,
    buffers: Buffers,
) -> Tensor:
    """[N, V] gradient to the logits, in the memory of `logprobs`, from those to the student's numbers."""
    num = len(logprobs)
    pulled = logprobs.new_zeros(num)
    entries: list[tuple[Tensor, Tensor]] = []
    if found.target is not None and tokens is not None:
        entries.append((tokens.target_ids[:, None], found.target[:, None]))
    if found.topk is not None and teacher.topk is not None:
        entries.append((teacher.topk.ids, found.topk))
    if found.gate is not None and teacher.gate is not None:
        entries.append((teacher.gate.ids, found.gate))
    for _, gradient in entries:
        pulled += gradient.sum(dim=-1)
    if slope is not None and found.full is not None:
        slope.mul_(found.full[:, None])
        if bool((found.full == 0).any()):
            slope.masked_fill_((found.full == 0)[:, None], 0.0)  # also where it is infinite
        pulled += slope.sum(dim=-1)
    rest = None
    if found.tail is not None and teacher.topk is not None:
        pulled += found.tail
        rest = buffers.get("work", num)
        rest.copy_(logprobs).scatter_(1, teacher.topk.ids, -torch.inf)
        torch.softmax(rest, dim=-1, out=rest)
        # Where everything outside is ruled out there is nothing to share out.
        rest.masked_fill_(rest.isnan() & ~logprobs[:, :1].isnan(), 0.0).mul_(found.tail[:, None])
    result = logprobs.exp_().mul_(pulled.neg()[:, None])
    for share in (slope if found.full is not None else None, rest):
        if share is not None:
            result.add_(share)
    for ids, gradient in entries:
        result.scatter_add_(1, ids, gradient)
    return result
