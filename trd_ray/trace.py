"""`trace.json`: what every actor did and when, for https://ui.perfetto.dev or chrome://tracing.

One group of tracks a role: the role as a whole (busy while any actor is), then each of its actors. Slices
are stages with a call outstanding, merged; between them, waits with their reasons and idle time. A group
`run` holds steps, pushes, checkpoints and restarts. Counters: queues, the buffer, prompts in flight.

What no eye can see is left out, or the file would grow with the number of calls: see `_resolution_us`.
Slices of one track never overlap, and those of stages cover exactly the time that `RoleActivity` calls
busy, rounded to microseconds.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from trd_ray.activity_records import ActivityLap, ActorState
from trd_ray.activity_sums import stage_label
from trd_ray.roles import Role
from trd_ray.trace_file import TraceFile

MAX_BYTES = 256 * 2**20
"""Of the whole file; viewers become slow beyond."""
PERIOD = 100
"""After the first steps two in so many are traced."""
_LEAST_RESOLUTION_US = 1000
_POINTS_A_STEP = 1000
_RESUME_GAP_US = 1_000_000

_PROCESSES: tuple[str, ...] = ("run", *Role)
_THREADS_A_PROCESS = 1_000_000
"""Viewers take thread numbers for unique over all processes."""


class _Track:
    """One row of slices."""

    __slots__ = ("_brief", "_file", "_label", "_pid", "_since", "_state", "_tid")

    def __init__(self, file: TraceFile, *, pid: int, tid: int, at_us: int) -> None:
        self._file = file
        self._pid = pid
        self._tid = tid
        self._state = ActorState.IDLE
        self._label = ""
        self._since = at_us
        self._brief: tuple[int, int, frozenset[str]] | None = None
        """Busy from, to, by stages: shorter than the resolution, to be joined with the next one if that
        follows at once and is short too."""

    def change(self, state: ActorState, label: str, at_us: int, *, resolution_us: int) -> None:
        """Another state from `at_us` on."""
        if state is self._state and label == self._label:
            return
        self.cut(at_us, resolution_us=resolution_us)
        self._state, self._label = state, label

    def cut(self, at_us: int, *, resolution_us: int) -> None:
        """Write what the present state has lasted, and begin it anew."""
        begin, self._since = self._since, at_us
        if at_us <= begin:
            return
        is_short = at_us - begin < resolution_us
        if self._state is ActorState.BUSY and is_short:
            self._join(begin, at_us, resolution_us=resolution_us)
            return
        self.flush()
        match self._state:
            case ActorState.BUSY:
                self._slice(self._label, begin, at_us)
            case ActorState.DOWN:
                self._slice("down", begin, at_us)
            case ActorState.WAITING if not is_short:
                self._slice(f"waiting: {self._label}", begin, at_us)
            case ActorState.IDLE if not is_short:
                self._slice("idle", begin, at_us)

    def skip(self, at_us: int) -> None:
        """Leave out what the present state has lasted."""
        self._since = at_us

    def flush(self) -> None:
        """Write the brief slice that was kept back."""
        if self._brief is not None:
            begin, end, stages = self._brief
            self._slice(stage_label(stages), begin, end)
            self._brief = None

    def _join(self, begin: int, end: int, *, resolution_us: int) -> None:
        stages = frozenset(self._label.split("+"))
        if self._brief is not None and self._brief[1] == begin:
            begin, stages = self._brief[0], self._brief[2] | stages
        else:
            self.flush()
        self._brief = (begin, end, stages)
        if end - begin >= resolution_us:
            self.flush()

    def _slice(self, name: str, begin: int, end: int) -> None:
        self._file.write(
            {"name": name, "ph": "X", "ts": begin, "dur": end - begin, "pid": self._pid, "tid": self._tid}
        )


class _CounterTrack:
    """One counter: a point at most every so often, and then the last value before it too."""

    __slots__ = ("_file", "_kept_back", "_last_us", "_name", "_pid", "_value")

    def __init__(self, file: TraceFile, name: str, *, pid: int) -> None:
        self._file = file
        self._name = name
        self._pid = pid
        self._value: int | None = None
        """As written."""
        self._last_us = 0
        self._kept_back: tuple[int, int] | None = None

    def change(self, value: int, at_us: int, *, resolution_us: int) -> None:
        if self._value is not None and at_us - self._last_us < resolution_us:
            self._kept_back = (at_us, value)
            return
        self.flush()
        self._write(value, at_us)

    def flush(self) -> None:
        """Write the value that was kept back."""
        if self._kept_back is not None:
            at_us, value = self._kept_back
            self._kept_back = None
            self._write(value, at_us)

    def _write(self, value: int, at_us: int) -> None:
        if value != self._value:
            args = {"number": value}
            self._file.write({"name": self._name, "ph": "C", "ts": at_us, "pid": self._pid, "args": args})
        self._value, self._last_us = value, at_us


class TraceWriter:
    """An `ActivityListener` that writes the trace. Close it at the end.

    A file that is there is continued, one second after its last event, with a mark: a run that is resumed
    a week later would be two specks otherwise. Steps that the resume repeats are there twice.
    """

    def __init__(
        self, path: Path, *, num_steps: int, first_step: int = 1, max_bytes: int = MAX_BYTES
    ) -> None:
        """
        Args:
            num_steps: so many steps from `first_step` on are traced, and later ones now and then.
        """
        self._file = TraceFile(path, max_bytes=max_bytes)
        self._num_steps = num_steps
        self._first_step = first_step
        self._offset_us = 0 if self._file.last_us is None else self._file.last_us + _RESUME_GAP_US
        self._is_on = True
        self._origin: float | None = None
        """Zero of the trace on the activity's clock; None before the first event."""
        self._tracks: dict[tuple[Role, str | None], _Track] = {}
        self._counters: dict[str, _CounterTrack] = {}
        self._resolution_us = _LEAST_RESOLUTION_US
        """Waits and idle times shorter than this are left out; shorter busy slices that follow each other
        are one; counters have no two points closer. A thousandth of the last step."""
        self._last_us = 0
        self._step_end_us = 0

    def on_actor(self, role: Role, actor: str | None, state: ActorState, label: str, at: float) -> None:
        at_us = self._us(at)
        track = self._tracks.get((role, actor))
        if track is None:
            track = self._new_track(role, actor, at_us)
        if not self._is_on:
            track.skip(at_us)
        track.change(state, label, at_us, resolution_us=self._resolution_us)

    def on_depth(self, name: str, depth: int, at: float) -> None:
        at_us = self._us(at)
        if not self._is_on:
            return
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = _CounterTrack(self._file, name, pid=_pid_of_depth(name))
        counter.change(depth, at_us, resolution_us=self._resolution_us)

    def on_mark(self, name: str, detail: str, at: float) -> None:
        if self._is_on:
            self._instant(f"{name} {detail}".rstrip(), self._us(at), scope="p")

    def on_lap(self, lap: ActivityLap, at: float) -> None:
        at_us = self._us(at)
        if self._is_on:
            self._step(lap, at_us)
        self._resolution_us = max(_LEAST_RESOLUTION_US, round(lap.step_s * 1e6 / _POINTS_A_STEP))
        was_on, self._is_on = self._is_on, self._traces(lap.learner_step + 1) and not self._file.is_full
        for track in self._tracks.values():
            if was_on and not self._is_on:
                track.cut(at_us, resolution_us=0)
                track.flush()
            elif self._is_on and not was_on:
                track.skip(at_us)
        for counter in self._counters.values():
            counter.flush()
        self._file.flush()

    def close(self) -> None:
        """Write what goes on still, and close the file. May be called more than once."""
        if self._is_on:
            for track in self._tracks.values():
                track.cut(self._last_us, resolution_us=0)
                track.flush()
            for counter in self._counters.values():
                counter.flush()
        self._file.close()
        self._is_on = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _traces(self, learner_step: int) -> bool:
        # Two in a row, so that the turn from one step to the next is seen.
        return learner_step - self._first_step < self._num_steps or learner_step % PERIOD in (0, 1)

    def _us(self, at: float) -> int:
        """Microseconds since the beginning of the trace; never less than at the call before."""
        if self._origin is None:
            self._origin = at
            self._begin()
        at_us = self._offset_us + round((at - self._origin) * 1e6)
        if at_us > self._last_us:
            self._last_us = at_us
        return self._last_us

    def _begin(self) -> None:
        for pid, name in enumerate(_PROCESSES, start=1):
            self._metadata("process_name", pid, None, name)
            self._file.write(
                {"name": "process_sort_index", "ph": "M", "pid": pid, "args": {"sort_index": pid}}
            )
        self._metadata("thread_name", 1, _tid(1, 0), "steps")
        if self._file.last_us is not None:
            self._instant(f"resumed before step {self._first_step}", self._offset_us, scope="g")

    def _new_track(self, role: Role, actor: str | None, at_us: int) -> _Track:
        pid = _PROCESSES.index(role) + 1
        number = 0 if actor is None else 1 + sum(r is role and a is not None for r, a in self._tracks)
        tid = _tid(pid, number)
        self._metadata("thread_name", pid, tid, f"any {role}" if actor is None else actor)
        self._file.write(
            {"name": "thread_sort_index", "ph": "M", "pid": pid, "tid": tid, "args": {"sort_index": number}}
        )
        track = self._tracks[role, actor] = _Track(self._file, pid=pid, tid=tid, at_us=at_us)
        return track

    def _metadata(self, kind: str, pid: int, tid: int | None, name: str) -> None:
        where = {"pid": pid} if tid is None else {"pid": pid, "tid": tid}
        self._file.write({"name": kind, "ph": "M", **where, "args": {"name": name}})

    def _instant(self, name: str, at_us: int, *, scope: str) -> None:
        self._file.write({"name": name, "ph": "i", "ts": at_us, "pid": 1, "tid": _tid(1, 0), "s": scope})

    def _step(self, lap: ActivityLap, at_us: int) -> None:
        name = f"step {lap.learner_step}"
        # Rounding must not let it begin before the last one's end.
        begin = max(self._step_end_us, at_us - round(lap.step_s * 1e6))
        self._step_end_us = at_us
        shares = {f"{role}_busy": round(of_role.busy_share, 3) for role, of_role in lap.roles.items()}
        self._file.write(
            {
                "name": name, "ph": "X", "ts": begin, "dur": at_us - begin, "pid": 1,
                "tid": _tid(1, 0), "args": shares,
            }
        )  # fmt: skip
        self._instant(f"{name} ends", at_us, scope="g")


def _tid(pid: int, number: int) -> int:
    return pid * _THREADS_A_PROCESS + number


def _pid_of_depth(name: str) -> int:
    role = name.removesuffix("_queue")
    return _PROCESSES.index(role) + 1 if role in _PROCESSES else 1
