"""A trial as Ray Tune runs it: a process that trains, and reports of how far it has come."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ray import tune

from launch.sweep.trial_process import TrialProcess, guarded_command
from trd_ray.config_loader import load_config
from trd_ray.sweep.options import MetricConfig, TrialsConfig
from trd_ray.sweep.results import TrialResult, read_result
from trd_ray.sweep.state import SweepFolder, TrialStatus

STEP = "learner_step"
VALUE = "metric_value"
NAME = "trial"
PROCESS = "process_id"
ENDED = "ended"
MESSAGE = "message"

_POLL_S = 0.3
# Tune can stop a trial only between two of its reports.
_REPORT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class TrialWork:
    """What every trial of a sweep needs to know. Paths are absolute."""

    folder: Path
    directory: Path
    """Working directory of the sweep, and so of its trials."""
    metric: MetricConfig
    trials: TrialsConfig
    command: tuple[str, ...] = ()
    """In place of `trd-ray`, to rehearse; gets the same arguments."""

    @property
    def sweep_folder(self) -> SweepFolder:
        return SweepFolder(self.folder)

    @property
    def stop_flag(self) -> Path:
        """There once the sweep is to end."""
        return self.folder / ".stop"

    def arguments(self, name: str) -> list[str]:
        """The command of one trial: a new run, or the rest of one that has begun."""
        options = ["--no-ray"] if self.trials.no_ray else []
        if self.sweep_folder.run(name).holds_run():
            options.append("--resume")
        return ["train", str(self.sweep_folder.config(name)), *options]


class TrialRun(tune.Trainable):
    """Starts the process in `setup`; `step` returns at each new value, and at least every two seconds."""

    def setup(self, config: dict[str, object], *, work: TrialWork) -> None:
        os.chdir(work.directory)
        self._work = work
        self._name = str(config[NAME])
        self._run = work.sweep_folder.run(self._name)
        self._num_steps = load_config(work.sweep_folder.config(self._name)).run.num_steps
        self._reported = 0
        self._seen_bytes = -1
        self._asked_at: float | None = None
        self._process: TrialProcess | None = None
        if work.stop_flag.exists():
            return
        arguments = work.arguments(self._name)
        self._process = TrialProcess(
            [*work.command, *arguments] if work.command else guarded_command(arguments),
            log=work.sweep_folder.log(self._name),
            directory=work.directory,
        )

    def step(self) -> dict[str, object]:
        until = time.monotonic() + _REPORT_S
        while True:
            if self._process is None:
                return self._report({ENDED: TrialStatus.PENDING.value, "done": True})
            code = self._process.exit_code()
            if code is not None:
                return self._last_report(self._process, code)
            self._obey(self._process)
            new = self._new_value()
            if new is not None:
                self._reported = new[0]
                return self._report({STEP: new[0], VALUE: new[1]})
            if time.monotonic() >= until:
                return self._report({})
            time.sleep(_POLL_S)

    def cleanup(self) -> None:
        """Stopped by Tune while it trains: end with a checkpoint, within `trials.stop_s`."""
        if self._process is None or self._process.exit_code() is not None:
            return
        if self._asked_at is None:
            self._process.ask_to_stop()
        if not self._process.wait(self._work.trials.stop_s):
            self._process.kill()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Checkpoints are in the run folder."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Likewise: a run that has begun is resumed from its own folder."""

    def _obey(self, process: TrialProcess) -> None:
        """Pass on that the sweep is to end."""
        if self._asked_at is not None:
            if time.monotonic() - self._asked_at > self._work.trials.stop_s:
                process.kill()
        elif self._work.stop_flag.exists():
            process.ask_to_stop()
            self._asked_at = time.monotonic()

    def _new_value(self) -> tuple[int, float] | None:
        """The next point of the curve that has not been reported. That of the last step comes when the run
        has ended: a run that only writes its last checkpoint must not be stopped."""
        file = self._run.eval if self._work.metric.of_eval else self._run.metrics
        size = file.stat().st_size if file.exists() else 0
        if size == self._seen_bytes:
            return None
        points = read_result(self._run, self._work.metric).curve
        for number, value in points:
            if self._reported < number < self._num_steps:
                return number, value
        self._seen_bytes = size
        return None

    def _last_report(self, process: TrialProcess, code: int) -> dict[str, object]:
        if code == 0:
            result = read_result(self._run, self._work.metric)
            return self._report({ENDED: TrialStatus.DONE.value, "done": True, **_final(result)})
        status = TrialStatus.FAILED if self._asked_at is None else TrialStatus.INTERRUPTED
        message = f"exit code {code}\n{process.last_words()}"
        return self._report({ENDED: status.value, "done": True, MESSAGE: message})

    def _report(self, values: dict[str, object]) -> dict[str, object]:
        pid = self._process.pid if self._process is not None else 0
        return {STEP: self._reported, PROCESS: pid, **values}


def _final(result: TrialResult) -> dict[str, object]:
    return {STEP: result.learner_step} | ({} if result.value is None else {VALUE: result.value})
