"""Writes the durable parts of a run that are not metrics: trajectories, their log, and checkpoints."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from trd_ray.batching import values_by_sample
from trd_ray.buffer_log import BufferLog, read_records, write_records
from trd_ray.disk import writing
from trd_ray.interfaces import Learner
from trd_ray.outcomes import Outcome
from trd_ray.run_folder import RunFolder
from trd_ray.run_state import RunState
from trd_ray.token_values import TokenValues
from trd_ray.trajectory_log import write_trajectories
from trd_ray.types import TrainingBatch, Trajectory

log = logging.getLogger(__name__)

BUFFER_FILE = "buffer.parquet"
"""In a checkpoint: what was in the buffer."""


class Recorder:
    """Owns trajectories/ and checkpoints/ of one run folder, and the log of its buffer."""

    def __init__(
        self, folder: RunFolder, *, keep_checkpoints: int, buffer_log: BufferLog | None = None
    ) -> None:
        """`buffer_log` gets what a replay needs, targets included; None keeps none."""
        self._folder = folder
        self._keep_checkpoints = keep_checkpoints
        self._buffer_log = buffer_log

    async def trajectories(self, trajectories: Sequence[Trajectory], *, learner_step: int) -> None:
        """All trajectories that ended in a step, rejected ones with their reasons, in the order in which
        the consumed ones make the batch: a replay makes it of the log again.

        On disk when this returns. Files are written in a thread: other work goes on meanwhile.
        Raises `RunFailedError` if the log or the rows cannot be written.
        """
        await asyncio.to_thread(self._write, trajectories, learner_step)

    async def token_values(
        self, trajectories: Sequence[Trajectory], batch: TrainingBatch, values: TokenValues
    ) -> None:
        """Write the step's trajectories once more, now with what the learner found at their tokens.

        Args:
            trajectories: as `trajectories` was given them.
            batch: made of the consumed ones, in their order.
            values: of the batch's tokens, in its order.

        Raises `RunFailedError` if the file cannot be written; then it is as it was.
        """
        by_sample = iter(values_by_sample(batch, values))
        of_each = [next(by_sample) if t.outcome is Outcome.CONSUMED else None for t in trajectories]
        with writing(self._folder.trajectories):
            await asyncio.to_thread(
                write_trajectories,
                self._folder.trajectories,
                trajectories,
                learner_step=batch.learner_step,
                token_values=of_each,
            )

    def _write(self, trajectories: Sequence[Trajectory], learner_step: int) -> None:
        with writing(self._folder.trajectories):
            write_trajectories(self._folder.trajectories, trajectories, learner_step=learner_step)
        if self._buffer_log is not None:
            self._buffer_log.write_step(trajectories, learner_step=learner_step)

    async def checkpoint(
        self, state: RunState, learner: Learner, *, finished: Sequence[Trajectory] = ()
    ) -> None:
        """Write `checkpoints/step_N` whole, or not at all; then delete the oldest ones.

        Args:
            finished: trajectories that are made and not learnt from yet.
        """
        await write_checkpoint(
            self._folder,
            learner,
            learner_step=state.learner_step,
            state=state,
            finished=finished,
            keep=self._keep_checkpoints,
        )


async def write_checkpoint(
    folder: RunFolder,
    learner: Learner,
    *,
    learner_step: int,
    state: RunState | None,
    keep: int,
    finished: Sequence[Trajectory] = (),
) -> None:
    """Write `checkpoints/step_N` whole, or not at all, unless it is there; then keep the newest `keep`, as
    far as the others can be deleted.

    Without a `state` it holds the learner only, and no run resumes from it. Raises `DiskError` if it cannot
    be written; those that are there stay.
    """
    if folder.checkpoint(learner_step).exists():
        return
    with (
        writing(folder.checkpoint(learner_step)),
        folder.writing_checkpoint(learner_step) as unfinished,
    ):
        await learner.save(unfinished)
        if state is not None:
            state.write(unfinished)
            await asyncio.to_thread(write_records, unfinished / BUFFER_FILE, finished)
    try:
        folder.prune_checkpoints(keep=keep)
    except OSError as error:  # for example while somebody reads it on a network disk
        log.warning("an old checkpoint was not deleted, the next one tries again: %s", error)
    log.info("checkpoint of step %d written", learner_step)


def read_finished(checkpoint: Path) -> tuple[Trajectory, ...]:
    """What `checkpoint` was given as `finished`. Raises `DataError` if the file is torn."""
    return read_records(checkpoint / BUFFER_FILE)
