"""TensorBoard: event files in `tensorboard/` of the run folder."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from trd_ray.trackers.session import RunEnd, TrackedRun


class TensorBoardTracker:
    """A `Tracker`. What an earlier attempt wrote from `first_step` on is hidden by TensorBoard."""

    def __init__(self, run: TrackedRun) -> None:
        self._folder = str(run.folder.tensorboard)
        purge_step = run.first_step if run.first_step > 1 else None
        self._events: SummaryWriter | None = SummaryWriter(self._folder, purge_step=purge_step)

    @property
    def run_id(self) -> str:
        return "tensorboard"

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        if self._events is None:
            self._events = SummaryWriter(self._folder)
        try:
            for tag, value in scalars.items():
                self._events.add_scalar(tag, value, learner_step)
            self._events.flush()
        except OSError:
            # The thread behind a writer ends with its first error, which each later call raises again.
            self._events = None
            raise

    def close(self, ended: RunEnd) -> None:
        if self._events is not None:
            self._events.close()
