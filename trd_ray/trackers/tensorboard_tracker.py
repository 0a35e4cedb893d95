"""TensorBoard: event files in `tensorboard/` of the run folder."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from trd_ray.trackers.session import RunEnd, TrackedRun


class TensorBoardTracker:
    """A `Tracker`. What an earlier attempt wrote from `first_step` on is hidden by TensorBoard."""

    def __init__(self, run: TrackedRun) -> None:
        purge_step = run.first_step if run.first_step > 1 else None
        self._events = SummaryWriter(str(run.folder.tensorboard), purge_step=purge_step)

    @property
    def run_id(self) -> str:
        return "tensorboard"

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        for tag, value in scalars.items():
            self._events.add_scalar(tag, value, learner_step)
        self._events.flush()

    def close(self, ended: RunEnd) -> None:
        self._events.close()
