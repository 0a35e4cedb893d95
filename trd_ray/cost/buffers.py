"""Host memory that the teacher's distributions take on their way to the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trd_ray.choices import ScoreMethod
from trd_ray.config import TrdConfig
from trd_ray.cost.workload import Lengths
from trd_ray.log_size import target_bytes_per_token

if TYPE_CHECKING:
    from trd_ray.model_files import ModelFacts

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """What one process, or the object store of a node, holds at most."""

    holder: str
    what: str
    num_bytes: int
    available: int | None = None
    """None: nothing is set aside for it."""

    @property
    def fits(self) -> bool:
        return self.available is None or self.num_bytes <= self.available

    def words(self) -> str:
        """For people."""
        said = f"{self.holder}: {self.what}: {self.num_bytes / 2**20:,.1f} MiB"
        if self.available is None:
            return said
        verdict = "fits" if self.fits else "does not fit (Ray spills to disk): raise ray.object_store_gib"
        return f"{said} of {self.available / 2**20:,.0f}, {verdict}"


def target_buffers(config: TrdConfig, lengths: Lengths, *, teacher: ModelFacts) -> tuple[Buffer, ...]:
    """Hidden states or top-k arrays in the driver, the scorer and a rank; none if nothing travels."""
    each = target_bytes_per_token(config, teacher=teacher)
    if not each:
        return ()
    step = round(config.pipeline.trajectories_per_step * lengths.trajectory * each)
    steps = config.pipeline.max_staleness + 1
    private = config.ray.address == "local"
    buffers = [
        Buffer(
            holder="driver",
            what=f"targets of {steps} step{'s' if steps > 1 else ''}",
            num_bytes=steps * step,
        ),
        # A step's targets are there twice while its batch is sent: as they came, and in the ranks' parts.
        Buffer(
            holder="object store",
            what="a step's targets, twice",
            num_bytes=2 * step,
            available=int(config.ray.object_store_gib * _GIB) if private else None,
        ),
        Buffer(
            holder="learner rank",
            what="its part of a step's targets",
            num_bytes=step // config.learner.num_ranks,
        ),
    ]
    if config.teacher.score is ScoreMethod.HIDDEN:
        buffers.append(
            Buffer(
                holder="teacher",
                what="hidden states of one batch, and their copies",
                num_bytes=round(2 * config.teacher.score_batch_tokens * each),
            )
        )
    return tuple(buffers)
