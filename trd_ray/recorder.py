"""Writes the durable parts of a run that are not metrics: trajectories and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trd_ray.interfaces import Learner
from trd_ray.run_folder import RunFolder
from trd_ray.run_state import RunState
from trd_ray.trajectory_log import write_trajectories
from trd_ray.types import Trajectory

log = logging.getLogger(__name__)


class Recorder:
    """Owns trajectories/ and checkpoints/ of one run folder."""

    def __init__(self, folder: RunFolder, *, keep_checkpoints: int) -> None:
        self._folder = folder
        self._keep_checkpoints = keep_checkpoints

    def trajectories(self, trajectories: Sequence[Trajectory], *, learner_step: int) -> None:
        """All trajectories that ended in a step, rejected ones with their reasons."""
        write_trajectories(self._folder.trajectories, trajectories, learner_step=learner_step)

    async def checkpoint(self, state: RunState, learner: Learner) -> None:
        """Write `checkpoints/step_N` whole, or not at all; then delete the oldest ones."""
        if self._folder.checkpoint(state.learner_step).exists():
            return
        with self._folder.writing_checkpoint(state.learner_step) as unfinished:
            await learner.save(unfinished)
            state.write(unfinished)
        self._folder.prune_checkpoints(keep=self._keep_checkpoints)
        log.info("checkpoint of step %d written", state.learner_step)
