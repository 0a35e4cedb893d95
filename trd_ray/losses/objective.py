"""Records of the objective: what the loss of a set of tokens is made from, and what comes out.

Axis letters: N tokens, V vocabulary, K entries of a top-k support, Dt teacher width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trd_ray.losses.options import ObjectiveOptions


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """What an architecture does between its head's product and the softmax."""

    scale: float = 1.0
    """x = scale * (hidden @ head.T)."""
    softcap: float | None = None
    """logits = softcap * tanh(x / softcap); None: logits = x."""

    def __post_init__(self) -> None:
        """Raises ValueError: a soft-cap that is not above 0."""
        if self.softcap is not None and not self.softcap > 0.0:
            raise ValueError(f"softcap: got {self.softcap}; expected a number above 0, or None")

    @property
    def is_identity(self) -> bool:
        return self.scale == 1.0 and self.softcap is None


@dataclass(frozen=True, kw_only=True)
class HiddenTeacher:
    """A teacher whose logits are made from hidden states, chunk by chunk."""

    hidden: Tensor
    """[N, Dt] after the final norm."""
    head: Tensor
    """[V or more, Dt]; rows beyond V are padding."""
    transform: LogitTransform = LogitTransform()


@dataclass(frozen=True, kw_only=True)
class TopKTeacher:
    """A teacher of whom a few log-probabilities are known."""

    topk_ids: Tensor
    """[N, K] int64, most likely first."""
    topk_logprobs: Tensor
    """[N, K] of the whole vocabulary's distribution."""
    token_logprobs: Tensor
    """[N] of the trajectory's own tokens."""


TeacherSide = HiddenTeacher | TopKTeacher | None
"""None where the loss needs no teacher: nll, none."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """The tokens whose losses are summed."""

    target_ids: Tensor
    """[N] int64, the trajectory's own."""
    weights: Tensor
    """[N] of each token's value in the loss."""
    rollout_logprobs: Tensor | None = None
    """[N] of the policy that sampled the tokens; for `policy_gradient` and the reward term."""
    advantages: Tensor | None = None
    """[N] of the token's whole sequence; for the reward term."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveOutput:
    """The loss, and what it was made of."""

    loss: Tensor
    """Scalar, sum over tokens of weight * value; differentiable to the student only."""
    token_values: Tensor
    """[N] in nats, detached."""
    student_logprobs: Tensor
    """[N] of `target_ids`, detached."""


def check_objective(
    num_tokens: int, teacher: TeacherSide, tokens: TokenBatch, options: ObjectiveOptions
) -> None:
    """Raise ValueError if a tensor that the options need is missing or has another length than [N]."""
    named = {
        "tokens.target_ids": tokens.target_ids,
        "tokens.weights": tokens.weights,
        "tokens.rollout_logprobs": tokens.rollout_logprobs,
        "tokens.advantages": tokens.advantages,
    }
    if isinstance(teacher, TopKTeacher):
        named["teacher.token_logprobs"] = teacher.token_logprobs
        if teacher.topk_ids.shape != teacher.topk_logprobs.shape or teacher.topk_ids.ndim != 2:
            raise ValueError(
                f"teacher: topk_ids has shape {tuple(teacher.topk_ids.shape)}, topk_logprobs "
                f"{tuple(teacher.topk_logprobs.shape)}; expected one and the same [N, K]"
            )
        named["teacher.topk_ids"] = teacher.topk_ids[:, :0].sum(dim=-1)
    for name, tensor in named.items():
        if tensor is not None and tuple(tensor.shape) != (num_tokens,):
            raise ValueError(f"{name}: got shape {tuple(tensor.shape)}; expected N = {num_tokens} tokens")
    if options.needs_rollout_logprobs and tokens.rollout_logprobs is None:
        raise ValueError(
            "tokens.rollout_logprobs: got None; expected [N], because the loss compares with them"
        )
    if options.reward is not None and tokens.advantages is None:
        raise ValueError("tokens.advantages: got None; expected [N], because there is a reward term")
    _check_teacher(teacher, options)


def _check_teacher(teacher: TeacherSide, options: ObjectiveOptions) -> None:
    if teacher is None and options.needs_teacher:
        raise ValueError(
            f"teacher: got None; expected one, because divergence is {options.divergence.divergence!r}"
        )
    if isinstance(teacher, TopKTeacher):
        full = options.divergence.compares and options.divergence.support == "full"
        if full or options.gate is not None:
            raise ValueError(
                "teacher: got TopKTeacher; expected HiddenTeacher, because support 'full' and the entropy "
                "gate need the teacher's whole distribution"
            )
