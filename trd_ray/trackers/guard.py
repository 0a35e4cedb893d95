"""One tracker in a thread of its own: whatever it does, the run goes on.

- A row that cannot be recorded is tried again after growing pauses; rows that follow wait behind it. When
  the pauses are used up it is lost to this tracker, and the next one is tried.
- The first failure is logged with its reason; all are counted.
- At most `max_rows` wait; then the oldest is lost.
- At the end each row that waits is tried once more, until one fails or the time is up. A tracker that does
  not end by then is left behind.

Nothing is lost to the run: metrics.jsonl and eval.jsonl hold every number.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trd_ray.errors import brief
from trd_ray.trackers.session import RunEnd, Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GuardLimits:
    """How patient a guard is."""

    pauses_s: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
    """Before each further try of a row."""
    max_rows: int = 1000
    open_s: float = 180.0
    """MLflow's client makes its tables in dozens of steps: half a minute, more where others compute too."""
    close_s: float = 20.0


@dataclass(frozen=True, kw_only=True)
class GuardReport:
    """What became of the rows of one tracker."""

    num_recorded: int
    num_failures: int
    """Tries that failed."""
    num_lost: int
    """Rows that the tracker does not have."""
    is_hung: bool
    """It did not end in time, and may still be at it."""
    reason: str
    """Of the first failure; empty if there was none."""


@dataclass(frozen=True, slots=True)
class _Row:
    scalars: Mapping[str, float]
    learner_step: int


class GuardedTracker:
    """Runs one `Tracker`. Every method is called from the run's thread, and returns at once but `join`."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], limits: GuardLimits) -> None:
        """Begins to open it; `wait_open` tells whether that went well."""
        self.name = name
        self._open_tracker = open_tracker
        self._limits = limits
        self._changed = threading.Condition()
        self._rows: deque[_Row] = deque()
        self._ended: RunEnd | None = None
        self._is_open = False
        self._open_error: Exception | None = None
        self._run_id = ""
        self._num_recorded = 0
        self._num_failures = 0
        self._num_lost = 0
        self._reason = ""
        # A thread that hangs in a library must not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def wait_open(self, *, deadline: float) -> str:
        """The run's id in the tracker. Raises what opening raised; TimeoutError at `deadline` (monotonic)."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_open or self._open_error is not None,
                timeout=max(0.0, deadline - time.monotonic()),
            )
            if self._open_error is not None:
                raise self._open_error
            if not self._is_open:
                raise TimeoutError(f"it did not open within {self._limits.open_s:g} s")
            return self._run_id

    def record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        """Have it recorded."""
        with self._changed:
            if len(self._rows) >= self._limits.max_rows:
                self._rows.popleft()
                self._num_lost += 1
            self._rows.append(_Row(scalars, learner_step))
            self._changed.notify_all()

    def ask_to_end(self, ended: RunEnd) -> None:
        """Record what waits, then close."""
        with self._changed:
            self._ended = ended
            self._changed.notify_all()

    def join(self, *, deadline: float) -> GuardReport:
        """Wait until it has ended, or until `deadline` (monotonic)."""
        self._thread.join(timeout=max(0.0, deadline - time.monotonic()))
        with self._changed:
            is_hung = self._thread.is_alive()
            return GuardReport(
                num_recorded=self._num_recorded,
                num_failures=self._num_failures,
                num_lost=self._num_lost + (len(self._rows) if is_hung else 0),
                is_hung=is_hung,
                reason=self._reason,
            )

    def _work(self) -> None:
        try:
            tracker = self._open_tracker()
            run_id = tracker.run_id
        except Exception as error:  # noqa: BLE001 - libraries raise what they like; `wait_open` passes it on
            with self._changed:
                self._open_error = error
                self._changed.notify_all()
            return
        with self._changed:
            self._run_id = run_id
            self._is_open = True
            self._changed.notify_all()
        self._record_all(tracker)
        try:
            tracker.close(self._ended or RunEnd.FAILED)
        except Exception as error:  # noqa: BLE001 - see above; the numbers are in the run folder
            self._failed(error)

    def _record_all(self, tracker: Tracker) -> None:
        """Until the end is asked for and nothing waits, or something cannot be recorded any more."""
        num_tries = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._rows) or self._ended is not None)
                if not self._rows:
                    return
                # Stays in the queue until it is recorded: it counts as waiting.
                row = self._rows[0]
                is_last_try = self._ended is not None
            num_tries += 1
            if self._try(tracker, row):
                self._drop(row, recorded=True)
                num_tries = 0
            elif is_last_try:
                self._give_up()
                return
            elif num_tries > len(self._limits.pauses_s):
                self._drop(row, recorded=False)
                num_tries = 0
            else:
                with self._changed:
                    pause_s = self._limits.pauses_s[num_tries - 1]
                    self._changed.wait_for(lambda: self._ended is not None, timeout=pause_s)

    def _try(self, tracker: Tracker, row: _Row) -> bool:
        try:
            tracker.record(row.scalars, learner_step=row.learner_step)
        except Exception as error:  # noqa: BLE001 - see above
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._num_failures += 1
            is_first = self._num_failures == 1
            if is_first:
                self._reason = f"{type(error).__name__}: {brief(error)}"
        if is_first:
            log.warning("%s does not record, and is tried again: %s", self.name, self._reason)

    def _drop(self, row: _Row, *, recorded: bool) -> None:
        with self._changed:
            if recorded:
                self._num_recorded += 1
            # It may have been pushed out meanwhile, and then counts as lost already.
            if self._rows and self._rows[0] is row:
                self._rows.popleft()
                self._num_lost += not recorded
            elif recorded:
                self._num_lost -= 1

    def _give_up(self) -> None:
        with self._changed:
            self._num_lost += len(self._rows)
            self._rows.clear()
