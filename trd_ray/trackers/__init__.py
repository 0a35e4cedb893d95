"""Where else a run's numbers go: TensorBoard, W&B, MLflow, trackio, each behind `Tracker`.

The libraries are imported only where they are asked for. `Trackers` is what a run uses:

- it opens all before anything is started; one that cannot be opened is bad input;
- each works in a thread of its own, so that none can hold up the run (`trd_ray.trackers.guard`);
- the run's id in each is kept in the run folder, and a resumed run goes on there.
"""

from __future__ import annotations

from trd_ray.trackers.observer import Trackers
from trd_ray.trackers.registry import check_trackers
from trd_ray.trackers.session import RunEnd

__all__ = ["RunEnd", "Trackers", "check_trackers"]
