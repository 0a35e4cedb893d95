"""The choices that fix a token's loss, checked once before any arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

DivergenceFunction = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities of teacher and student, [N, V] each (or over a top-k support), to values [N] in nats.
A value depends on its own row alone; autograd differentiates it to the student's."""

_DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "nll", "custom", "none")
_SUPPORTS = ("full", "top_k", "sampled")
_RENORMALIZE = ("teacher", "both", "none")
_TAILS = ("drop", "bucket")
_CLIPS = (None, "token", "entry")
_ESTIMATORS = ("k1", "k3", "policy_gradient")


@dataclass(frozen=True, kw_only=True, slots=True)
class DivergenceOptions:
    """One divergence. The defaults are the method's: full-vocabulary KL(teacher || student)."""

    divergence: str = "forward_kl"
    """`forward_kl` = KL(teacher || student), `reverse_kl` = KL(student || teacher), `jsd` between
    them, `nll` = -log student(token), `custom`, or `none`."""
    function: DivergenceFunction | None = None
    """Of `custom`."""
    beta: float = 0.5
    """Weight of the teacher in the mixture of `jsd`. In [0, 1]; 0 is forward and 1 reverse KL."""
    support: str = "full"
    """Entries that are summed over: `full`, the teacher's `top_k`, or the one `sampled`."""
    top_k: int | None = None
    """Entries of `top_k` support: the k most likely of the teacher. More than V means V."""
    renormalize: str = "teacher"
    """Which distribution is rescaled to sum to 1 over a `top_k` support. Without meaning where the
    tail is a `bucket`, since both sides then sum to 1 already."""
    tail: str = "drop"
    """What becomes of the probability outside a `top_k` support: left out, or one more entry."""
    clip: str | None = None
    """What is bounded from above: each `token`, each vocabulary `entry`, or nothing."""
    clip_max: float | None = None
    """The bound, in nats."""
    estimator: str = "k1"
    """Of a `sampled` reverse KL."""
    ratio_clip: float = 0.2
    """PPO's clip of the estimator `policy_gradient`. Above 0."""

    def __post_init__(self) -> None:
        """Raises ValueError: a value that does not exist, or one that contradicts another."""
        _require_known("divergence", self.divergence, _DIVERGENCES)
        _require_known("support", self.support, _SUPPORTS)
        _require_known("renormalize", self.renormalize, _RENORMALIZE)
        _require_known("tail", self.tail, _TAILS)
        _require_known("clip", self.clip, _CLIPS)
        _require_known("estimator", self.estimator, _ESTIMATORS)
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta: got {self.beta}; expected a number in [0, 1]")
        if not self.ratio_clip > 0.0:
            raise ValueError(f"ratio_clip: got {self.ratio_clip}; expected a number above 0")
        _require_number(
            "top_k", self.top_k, 1, used=self.support == "top_k", because=f"support is {self.support!r}"
        )
        _require_number(
            "clip_max", self.clip_max, 0.0, used=self.clip is not None, because=f"clip is {self.clip!r}"
        )
        self._check_combination()

    def _check_combination(self) -> None:
        if (self.function is not None) != (self.divergence == "custom"):
            raise ValueError(
                f"function: got {self.function!r} with divergence {self.divergence!r}; expected one with "
                "'custom', and only there"
            )
        if self.divergence == "custom" and (self.support == "sampled" or self.clip == "entry"):
            raise ValueError(
                f"support, clip: got {self.support!r}, {self.clip!r}; expected no 'sampled' and no 'entry', "
                "because a custom divergence gives one value a token"
            )
        if self.divergence in ("nll", "none") and (self.support != "full" or self.clip is not None):
            raise ValueError(
                f"support, clip: got {self.support!r}, {self.clip!r}; expected 'full', None, because "
                f"divergence {self.divergence!r} uses no teacher distribution"
            )
        if self.support == "sampled" and self.divergence == "jsd":
            raise ValueError(
                "support: got 'sampled'; expected 'full' or 'top_k', because jsd has no sampled form"
            )
        if self.support == "sampled" and self.clip == "entry":
            raise ValueError(
                "clip: got 'entry'; expected 'token' or None, because a sampled estimate has no entries"
            )

    @property
    def formula(self) -> str:
        """The divergence that is computed: the end points of `jsd` are the two KLs."""
        if self.divergence == "jsd" and self.beta in (0.0, 1.0):
            return "forward_kl" if self.beta == 0.0 else "reverse_kl"
        return self.divergence

    @property
    def compares(self) -> bool:
        """A teacher's distribution is needed."""
        return self.divergence not in ("nll", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class GateOptions:
    """EOPD: a second divergence where the teacher is unsure (arXiv 2603.07079)."""

    threshold: float
    """Teacher entropy over the whole vocabulary, in nats, above which it counts."""
    coef: float
    """Its weight."""
    top_k: int
    """Its forward KL is over so many most likely tokens of the teacher, rescaled to sum to 1."""

    def __post_init__(self) -> None:
        """Raises ValueError: top_k below 1."""
        _require_number("gate.top_k", self.top_k, 1, used=True, because="")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardOptions:
    """GRPO's clipped policy gradient (Shao et al. 2024, arXiv 2402.03300, equation 3, no KL term)."""

    coef: float
    clip: float
    """The ratio of new to old probability counts in [1 - clip, 1 + clip] only. Above 0."""

    def __post_init__(self) -> None:
        """Raises ValueError: a clip that is not above 0."""
        _require_number("reward.clip", self.clip, 0.0, used=True, because="")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveOptions:
    """Everything that fixes the value of a token."""

    divergence: DivergenceOptions = field(default_factory=DivergenceOptions)
    gate: GateOptions | None = None
    reward: RewardOptions | None = None

    @property
    def needs_teacher(self) -> bool:
        return self.divergence.compares or self.gate is not None

    @property
    def needs_rollout_logprobs(self) -> bool:
        """The loss compares with the policy that sampled the tokens."""
        return self.reward is not None or (
            self.divergence.support == "sampled"
            and self.divergence.divergence == "reverse_kl"
            and self.divergence.estimator == "policy_gradient"
        )


def _require_known(name: str, got: object, known: tuple[object, ...]) -> None:
    if got not in known:
        raise ValueError(f"{name}: got {got!r}; expected one of {list(known)}")


def _require_number(name: str, got: float | None, least: float, *, used: bool, because: str) -> None:
    """An integer bound is the least allowed value, a float bound must be exceeded."""
    if not used:
        if got is not None:
            raise ValueError(f"{name}: got {got}; expected None, because {because}")
    elif got is None or got < least or (isinstance(least, float) and got == least):
        wanted = f"a number above {least:g}" if isinstance(least, float) else f"{least} or more"
        raise ValueError(
            f"{name}: got {got}; expected {wanted}" + (f", because {because}" if because else "")
        )
