"""A tracker that does what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from trd_ray.trackers.session import RunEnd


class ScriptedTracker:
    """A `Tracker` that keeps what it is given; `before` is called first, and may raise or wait."""

    def __init__(self, *, run_id: str = "id", before: Callable[[int], None] = lambda step: None) -> None:
        self.run_id = run_id
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended: RunEnd | None = None
        self.thread: int | None = None
        self._before = before

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        self._before(learner_step)
        self.thread = threading.get_ident()
        self.rows.append((learner_step, dict(scalars)))

    def close(self, ended: RunEnd) -> None:
        self.ended = ended

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.rows]
