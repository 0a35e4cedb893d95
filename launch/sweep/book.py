"""The books of a running sweep: state file and leaderboard after every change, a line for people."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace

import psutil

from launch.consoles import show
from trd_ray.config_loader import load_config
from trd_ray.sweep.files import write_leaderboard
from trd_ray.sweep.leaderboard import Leaderboard, read_leaderboard
from trd_ray.sweep.options import MetricConfig
from trd_ray.sweep.results import read_result
from trd_ray.sweep.state import SweepFolder, SweepState, TrialStatus

log = logging.getLogger(__name__)


class SweepBook:
    """Told of every start and end of a trial."""

    def __init__(self, folder: SweepFolder, state: SweepState, metric: MetricConfig) -> None:
        self._folder = folder
        self._state = state
        self._metric = metric
        self._started: dict[str, float] = {}
        self._processes: dict[str, int] = {}

    @property
    def num_running(self) -> int:
        return len(self._started)

    def started(self, name: str) -> None:
        if name in self._started:
            return
        record = self._state[name]
        self._started[name] = time.monotonic()
        self._state.put(replace(record, status=TrialStatus.RUNNING, attempts=record.attempts + 1, message=""))
        again = f", attempt {record.attempts + 1}" if record.attempts else ""
        show(f"started        {name}{again}")

    def ended(self, name: str, status: TrialStatus, message: str = "") -> None:
        """A trial that never began stays pending and leaves no trace."""
        began = self._started.pop(name, None)
        record = self._state[name]
        if status is TrialStatus.PENDING:
            attempts = record.attempts - (began is not None)
            self._state.put(replace(record, status=status, attempts=attempts))
            return
        spent_s = record.spent_s + (time.monotonic() - began if began is not None else 0.0)
        self._state.put(replace(record, status=status, spent_s=spent_s, message=message))
        board = self.write()
        show(self._line(name, status, board))
        if status is TrialStatus.FAILED:
            log.error("trial %s failed: %s\nits log: %s", name, message, self._folder.log(name))

    def watched(self, name: str, process_id: int) -> None:
        """The trial runs in this process."""
        if process_id:
            self._processes[name] = process_id

    def wait_for_processes(self, timeout_s: float) -> None:
        """Until those of all trials have ended, or been killed after `timeout_s` seconds."""
        alive = [process for pid in self._processes.values() if (process := _trial_process(pid))]
        self._processes.clear()
        _, late = psutil.wait_procs(alive, timeout=timeout_s)
        for process in late:
            log.error("process %d of a trial did not end within %.0f s and is killed", process.pid, timeout_s)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def settle(self) -> Leaderboard:
        """At the end of a sweep no trial runs, and one that came to its end while it was stopped is done."""
        for record in self._state.records:
            if record.status is TrialStatus.RUNNING:
                self._state.put(replace(record, status=TrialStatus.INTERRUPTED))
            elif record.status is TrialStatus.STOPPED_EARLY:
                num_steps = load_config(self._folder.config(record.name)).run.num_steps
                curve = read_result(self._folder.run(record.name), self._metric).curve
                if curve and curve[-1][0] == num_steps:
                    self._state.put(replace(record, status=TrialStatus.DONE))
        return self.write()

    def write(self) -> Leaderboard:
        """Write the leaderboard as things are now."""
        board = read_leaderboard(self._folder, self._state, self._metric)
        write_leaderboard(board, self._folder.path)
        return board

    def _line(self, name: str, status: TrialStatus, board: Leaderboard) -> str:
        result = read_result(self._folder.run(name), self._metric)
        value = "" if result.value is None else f", {board.label} {result.value:.4g}"
        final = sum(record.status.is_final for record in self._state.records)
        return (
            f"{status.value:<14} {name}: step {result.learner_step}{value}, "
            f"{self._state[name].spent_s:.0f} s ({final} of {len(self._state.records)} trials ended)"
        )


def _trial_process(pid: int) -> psutil.Process | None:
    """None if it has ended, also if its number belongs to another process by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE and "trial_process" in " ".join(process.cmdline()):
            return process
    return None
