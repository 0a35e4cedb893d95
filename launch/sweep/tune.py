"""The sweep on Ray Tune: scheduler, resources, signals and callbacks."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray
from ray import tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from actors.cluster import GIB, LOCAL
from launch.sweep.book import SweepBook
from launch.sweep.queue import TrialQueue
from launch.sweep.resources import Amounts, driver_request, most_at_once, private_request
from launch.sweep.trial import ENDED, MESSAGE, NAME, PROCESS, STEP, VALUE, TrialRun, TrialWork
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.errors import PlacementError, RunFailedError, describe
from trd_ray.sweep.options import StopKind, SweepOptions
from trd_ray.sweep.state import SweepFolder, TrialStatus

log = logging.getLogger(__name__)

# Ray Tune would write TensorBoard events, wait for a metric in each report, change the working directory of
# trials, and handle Ctrl-C by giving each trial ten seconds.
_TUNE_VARIABLES = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
}
_MARGIN_S = 30.0
_TELL_EVERY_S = 60.0
_MOST_IDLE_S = 900.0

Configs = Callable[[], Mapping[str, TrdConfig]]
"""The configurations of all trials that are known, by name."""


def run_on_tune(
    queue: TrialQueue, work: TrialWork, book: SweepBook, options: SweepOptions, configs: Configs
) -> None:
    """Run every trial of the queue; the cluster is joined already. Returns when all have ended."""
    os.environ.update(_TUNE_VARIABLES)
    os.environ["TUNE_FORCE_TRIAL_CLEANUP_S"] = str(int(options.trials.stop_s + _MARGIN_S))
    for name in ("ray.tune", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
    resources = _resources(options, SweepFolder(work.folder))
    with _stop_on_signals(work.stop_flag) as stopper:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(TrialRun, work=work), resources),
            tune_config=tune.TuneConfig(
                search_alg=queue,
                scheduler=_scheduler(options, configs),
                num_samples=-1,
                max_concurrent_trials=_most_at_once(options, configs),
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name=time.strftime("%Y%m%d_%H%M%S"),
                storage_path=str(SweepFolder(work.folder).tune),
                callbacks=[_Books(book, stop_s=options.trials.stop_s)],
                stop=stopper.watching(book),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        try:
            tuner.fit()
        except TuneError as error:
            raise RunFailedError(f"Ray Tune ended the sweep: {error}") from error


def _scheduler(options: SweepOptions, configs: Configs) -> TrialScheduler:
    stop = options.stop_early
    if stop.kind is StopKind.NONE:
        return FIFOScheduler()
    longest = max(config.run.num_steps for config in configs().values())
    return ASHAScheduler(
        time_attr=STEP,
        metric=VALUE,
        mode=options.metric.mode.value,
        grace_period=stop.grace_steps,
        reduction_factor=stop.reduction_factor,
        max_t=max(longest, stop.grace_steps),
    )


def _resources(options: SweepOptions, folder: SweepFolder) -> Callable[[dict[str, object]], object]:
    """What a trial is given. Tune asks a copy of the function, which knows of later trials by their files."""
    local = options.ray.address == LOCAL
    machine = ray.cluster_resources()
    node = next(name for name in _nodes()[0] if name.startswith("node:") and name != "node:__internal_head__")

    def of_trial(config: dict[str, object]) -> tune.PlacementGroupFactory:
        wanted: Amounts
        if local:
            wanted = private_request(load_config(folder.config(str(config[NAME]))), options.trials, machine)
        else:
            wanted = driver_request(options.trials, node)
        return tune.PlacementGroupFactory([wanted])

    return of_trial


def _nodes() -> list[dict[str, float]]:
    """Resources of all nodes, this one first."""
    own = ray.get_runtime_context().get_node_id()
    alive = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != own)
    return [node["Resources"] for node in alive]


def _places() -> str:
    """What the cluster has and what of it is free."""
    has, free = ray.cluster_resources(), ray.available_resources()
    scales = {"CPU": (1, " cores"), "GPU": (1, " GPUs"), "memory": (GIB, " GiB")}
    return ", ".join(
        f"{free.get(name, 0.0) / scale:g} of {has[name] / scale:g}{unit} free"
        for name, (scale, unit) in scales.items()
        if name in has
    )


def _most_at_once(options: SweepOptions, configs: Configs) -> int | None:
    if options.ray.address == LOCAL or options.trials.no_ray:
        return options.trials.max_concurrent or None
    return most_at_once(list(configs().values()), options.trials, _nodes())


class _Stopper(tune.Stopper):
    """Ends the experiment once the sweep is to end and the running trials have; they see the flag too."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag
        self._book: SweepBook | None = None

    def watching(self, book: SweepBook) -> _Stopper:
        self._book = book
        return self

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._book is not None and self._book.num_running == 0 and self._flag.exists()


@contextmanager
def _stop_on_signals(flag: Path) -> Iterator[_Stopper]:
    """The first Ctrl-C or SIGTERM sets the flag, the second ends the sweep at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if flag.exists():
            raise KeyboardInterrupt
        log.warning("stopping all trials, each with a checkpoint; once more to stop at once")
        flag.touch()

    flag.unlink(missing_ok=True)
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _Stopper(flag)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Books(tune.Callback):
    """Keeps the books, in the sweep's process."""

    def __init__(self, book: SweepBook, *, stop_s: float) -> None:
        self._book = book
        self._stop_s = stop_s
        self._idle_since = self._told_at = time.monotonic()

    def on_trial_start(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        self._book.started(trial.config[NAME])

    def on_trial_result(
        self,
        iteration: int,
        trials: Sequence[TuneTrial],
        trial: TuneTrial,
        result: dict[str, object],
        **info: object,
    ) -> None:
        self._book.watched(trial.config[NAME], int(str(result[PROCESS])))

    def on_trial_complete(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        ended = trial.last_result.get(ENDED)
        status = TrialStatus(ended) if ended else TrialStatus.STOPPED_EARLY
        self._book.ended(trial.config[NAME], status, str(trial.last_result.get(MESSAGE, "")))

    def on_trial_error(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        self._book.ended(
            trial.config[NAME], TrialStatus.FAILED, "Ray lost the process that watched the trial"
        )

    def on_step_end(self, iteration: int, trials: Sequence[TuneTrial], **info: object) -> None:
        """Tune gives actors that it stops ten seconds once no trial is left; a checkpoint may take longer."""
        if trials and all(trial.is_finished() for trial in trials):
            self._book.wait_for_processes(self._stop_s)
        self._require_progress(waiting=any(trial.status == TuneTrial.PENDING for trial in trials))

    def _require_progress(self, *, waiting: bool) -> None:
        """Tune would wait for ever for a place for a trial."""
        now = time.monotonic()
        if self._book.num_running or not waiting:
            self._idle_since = self._told_at = now
        elif now - self._idle_since > _MOST_IDLE_S:
            raise PlacementError(
                describe(
                    "no trial of the sweep got a place", where="trials", got=_places(),
                    expected=f"room for one within {_MOST_IDLE_S:.0f} s",
                    remedy="free the cluster or lower what trials ask for, then --resume",
                )
            )  # fmt: skip
        elif now - self._told_at > _TELL_EVERY_S:
            self._told_at = now
            log.warning("waiting for a place for a trial: %s", _places())
