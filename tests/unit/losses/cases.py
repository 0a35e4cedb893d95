"""Options and logits that many tests go through."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict

import torch
from torch import Tensor

from trd_ray.losses import DivergenceOptions

INF = math.inf
DIVERGENCES = (
    ("forward_kl", 0.5),
    ("reverse_kl", 0.5),
    ("jsd", 0.5),
    ("jsd", 0.2),
    ("jsd", 0.0),
    ("jsd", 1.0),
)
CLIPS = ((None, None), ("token", 0.3), ("entry", 0.05))
TOP_K_MEANINGS = (("teacher", "drop"), ("both", "drop"), ("none", "drop"), ("none", "bucket"))


def divergence_grid(*, top_k: tuple[int, ...] = (1, 3, 7)) -> list[DivergenceOptions]:
    """Every divergence with every support and clip, over distributions that need no tokens."""
    grid = []
    for (divergence, beta), (clip, clip_max) in itertools.product(DIVERGENCES, CLIPS):
        common = {"divergence": divergence, "beta": beta, "clip": clip, "clip_max": clip_max}
        grid.append(DivergenceOptions(**common))
        for k, (renormalize, tail) in itertools.product(top_k, TOP_K_MEANINGS):
            grid.append(
                DivergenceOptions(support="top_k", top_k=k, renormalize=renormalize, tail=tail, **common)
            )
    return grid


def name_of(options: DivergenceOptions) -> str:
    parts = [options.divergence + (f"{options.beta:g}" if options.divergence == "jsd" else "")]
    if options.support == "top_k":
        parts.append(f"top{options.top_k}-{options.renormalize}-{options.tail}")
    if options.clip:
        parts.append(options.clip)
    return "-".join(parts)


def arguments(options: DivergenceOptions) -> dict[str, object]:
    """The keywords of `token_divergence`."""
    return {k: v for k, v in asdict(options).items() if k not in ("estimator", "ratio_clip", "function")}


def random_pair(*, num: int = 5, vocab: int = 7, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, num, vocab, generator=generator, dtype=torch.float64).mul(scale)
    return pair[0].clone(), pair[1].clone()


def logits_of(*probabilities: float) -> Tensor:
    """[1, V] logits whose softmax is `probabilities`, which sum to 1."""
    return torch.tensor([[math.log(p) if p else -INF for p in probabilities]], dtype=torch.float64)


def adversarial_pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """Student and teacher logits that break careless arithmetic, each of which has a finite answer."""
    student, teacher = random_pair(num=4, seed=3)
    padding = torch.full((4, 2), -INF, dtype=torch.float64)
    flat = torch.zeros(4, 7, dtype=torch.float64)
    # All different: which of two equal entries is among the k most likely is not defined.
    peak = -30.0 - torch.arange(7, dtype=torch.float64).mul(0.1).repeat(4, 1)
    peak[torch.arange(4), torch.tensor([0, 2, 4, 6])] = 30.0
    return {
        "large": (student * 60 + 1e4, teacher * 60 - 1e4),
        "equal": (student + 5.0, student.clone()),
        "flat": (flat, flat.clone()),
        "flat_student": (flat, teacher),
        "peaked_teacher": (student, peak),
        "peaked_student": (peak, teacher),
        "peaked_apart": (peak, peak.flip(0)),
        "padded": (torch.cat([student, padding], 1), torch.cat([teacher, padding], 1)),
    }
