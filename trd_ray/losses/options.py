"""The choices that fix a per-token divergence, checked once before any arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

_DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
_SUPPORTS = ("full", "top_k", "sampled")
_RENORMALIZE = ("teacher", "both", "none")
_TAILS = ("drop", "bucket")
_CLIPS = (None, "token", "entry")

_OFFERED = {"divergence": ("forward_kl", "reverse_kl"), "support": ("full",), "clip": (None,)}


@dataclass(frozen=True, kw_only=True, slots=True)
class DivergenceOptions:
    """One divergence. The defaults are the method's: full-vocabulary KL(teacher || student)."""

    divergence: str = "forward_kl"
    """`forward_kl` = KL(teacher || student) or `reverse_kl` = KL(student || teacher)."""
    beta: float = 0.5
    """Weight of the teacher in the mixture of `jsd`. In [0, 1]."""
    support: str = "full"
    """Vocabulary entries that are summed over."""
    top_k: int | None = None
    """Entries of `top_k` support: the k most likely of the teacher."""
    renormalize: str = "teacher"
    """Which distribution is rescaled to sum to 1 over a `top_k` support."""
    tail: str = "drop"
    """What becomes of the probability outside a `top_k` support."""
    clip: str | None = None
    """What is bounded from above: each `token`, each vocabulary `entry`, or nothing."""
    clip_max: float | None = None
    """The bound, in nats."""

    def __post_init__(self) -> None:
        """Raises ValueError: a value that does not exist, or is not offered yet."""
        _require_known("divergence", self.divergence, _DIVERGENCES)
        _require_known("support", self.support, _SUPPORTS)
        _require_known("renormalize", self.renormalize, _RENORMALIZE)
        _require_known("tail", self.tail, _TAILS)
        _require_known("clip", self.clip, _CLIPS)
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta: got {self.beta}; expected a number in [0, 1]")
        for name, offered in _OFFERED.items():
            got = getattr(self, name)
            if got not in offered:
                raise ValueError(f"{name}: {got!r} is not offered yet; expected one of {list(offered)}")
        if self.top_k is not None:
            raise ValueError(f"top_k: got {self.top_k}; expected None, because support is {self.support!r}")
        if self.clip_max is not None:
            raise ValueError(f"clip_max: got {self.clip_max}; expected None, because clip is {self.clip!r}")


def _require_known(name: str, got: object, known: tuple[object, ...]) -> None:
    if got not in known:
        raise ValueError(f"{name}: got {got!r}; expected one of {list(known)}")
