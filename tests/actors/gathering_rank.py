"""What one ZeRO-3 rank does in its own process for `test_learner_weights.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from actors import learner_weights
from trd_ray.choices import Divergence, ScoreMethod
from trd_ray.config import LearnerConfig, MethodConfig
from trd_ray.types import TrajectorySource

BUCKET_BYTES = 1_500_000
"""Two matrices of float32 with 163,840 elements; more than the small ones together."""


@dataclass(kw_only=True)
class Gathering:
    """What one rank saw."""

    resident_before: int = 0
    """Bytes of weights that are whole on this rank outside of a gathering."""
    whole_bytes: int = 0
    """Bytes of all weights."""
    bucket_sizes: list[int] = field(default_factory=list)
    """Bytes of each gathering, by `ds_numel`."""
    resident: list[int] = field(default_factory=list)
    """Bytes that were whole beyond `resident_before`, each time that a weight was taken."""
    errors: list[str] = field(default_factory=list)
    collectives_after_failure: int = 0
    after_failure: str | None = None
    """Checksum of all weights, gathered after that."""


def resident_bytes(model: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def run_rank(rank: int, world_size: int, port: int, folder: Path) -> None:
    from actors.learner import LearnerRank

    learner = LearnerRank(
        LearnerConfig(zero_stage=3, threads=1),
        method=MethodConfig(trajectory=TrajectorySource.TEACHER, divergence=Divergence.NLL),
        score=ScoreMethod.HIDDEN,
        student=folder,
        teacher=folder,
        rank=rank,
        world_size=world_size,
        num_steps=1,
        seed=0,
        timeout_s=60.0,
    )
    learner.setup("127.0.0.1", port)
    model = learner._module.model
    seen = Gathering(resident_before=resident_bytes(model))
    seen.whole_bytes = sum(p.ds_numel * p.element_size() for p in model.parameters())
    plain_gathered = learner_weights.gathered

    def watched(parameters, *, zero_stage: int):
        seen.bucket_sizes.append(sum(p.ds_numel * p.element_size() for p in parameters))
        return plain_gathered(parameters, zero_stage=zero_stage)

    learner_weights.gathered = watched
    for _ in learner._weights(BUCKET_BYTES):
        seen.resident.append(resident_bytes(model) - seen.resident_before)
    sizes, seen.bucket_sizes = seen.bucket_sizes, []
    for fail in (at_once, at_third):
        try:
            learner.send_weights(fail, bucket_bytes=BUCKET_BYTES)
        except ZeroDivisionError:
            seen.errors.append(fail.__name__)
    seen.collectives_after_failure, seen.bucket_sizes = len(seen.bucket_sizes), sizes
    learner_weights.gathered = plain_gathered
    # A rank that had left a collective out would answer this one with another bucket's weights, or never.
    seen.after_failure = learner.checksum("float32")
    torch.save(vars(seen), folder / f"gathering_{rank}.pt")
    learner.shutdown()


def at_once(named: Iterator[tuple[str, torch.Tensor]]) -> None:
    raise ZeroDivisionError


def at_third(named: Iterator[tuple[str, torch.Tensor]]) -> None:
    for _ in range(3):
        next(named)
    raise ZeroDivisionError
