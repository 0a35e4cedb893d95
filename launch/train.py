"""`trd-ray train`: one run from configuration to report. Also `python -m launch.train CONFIG ...`."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.consoles import console, show
from launch.exits import started
from launch.log_claim import claim_log, rewind_log
from launch.preflight import check_run, require_same_run
from launch.progress import Progress, closing_table
from launch.signals import Signals
from trd_ray.activity import RoleActivity
from trd_ray.assembly import Roles, RunInputs, build_pipeline
from trd_ray.config import TrdConfig
from trd_ray.config_loader import dump_config
from trd_ray.disk import write_whole
from trd_ray.metrics import MetricsWriter, read_evals, read_metrics
from trd_ray.observer import Observer, Observers
from trd_ray.pipeline import RunResult
from trd_ray.report import write_report
from trd_ray.run_folder import RunFolder
from trd_ray.trace import TraceWriter
from trd_ray.trackers import Trackers
from trd_ray.watched import watch_roles

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where a run begins."""

    folder: RunFolder
    checkpoint: Path | None
    first_step: int


Wiring = Callable[[TrdConfig, RunInputs, RunFolder, RoleActivity], AbstractAsyncContextManager[Roles]]
"""Makes the roles of a run."""


def train(config: TrdConfig, *, resume: bool, no_ray: bool, wiring: Wiring | None = None) -> int:
    """Run to the end. Returns the exit code: 0 done, 1 stopped by a signal (after a checkpoint).

    Args:
        wiring: in place of the real one, to rehearse failures.

    Raises the errors of `check_run` before anything is started, and those of the roles after.
    """
    inputs = check_run(config, no_ray=no_ray)
    show(f"method: {config.method.sentence()}")
    if resume:
        folder = RunFolder.open(config.run.dir)
        require_same_run(folder, config)
    else:
        RunFolder(config.run.dir).require_free()
        claim_log(config)
        folder = RunFolder.create(config.run.dir)
    with folder.locked():
        start = _resume(folder, config) if resume else _Start(folder=folder, checkpoint=None, first_step=1)
        with Trackers(config, folder, first_step=start.first_step) as trackers:
            write_whole(folder.config, dump_config(config))
            make_roles = wiring or _wiring(no_ray=no_ray)
            result = started(
                lambda: asyncio.run(_run(config, inputs, start, make_roles, trackers, no_ray=no_ray))
            )
            if result.interrupted:
                trackers.stopped()
        _close(folder, result)
    return 1 if result.interrupted else 0


def _resume(folder: RunFolder, config: TrdConfig) -> _Start:
    """Take out of the run what came after its last checkpoint; without one, everything."""
    checkpoint = folder.latest_checkpoint()
    last_step = -1 if checkpoint is None else checkpoint.learner_step
    rewind_log(config, folder, last_step)
    folder.rewind(last_step)
    if checkpoint is None:
        return _Start(folder=folder, checkpoint=None, first_step=1)
    return _Start(folder=folder, checkpoint=checkpoint.path, first_step=checkpoint.learner_step + 1)


async def _run(
    config: TrdConfig,
    inputs: RunInputs,
    start: _Start,
    wiring: Wiring,
    trackers: Trackers,
    *,
    no_ray: bool,
) -> RunResult:
    evaluated = {report.learner_step for report in read_evals(start.folder.eval)}
    activity = RoleActivity()
    with (
        _tracing(config, start, activity),
        Progress(
            config.run.num_steps,
            console=console,
            done_steps=start.first_step - 1,
            activity=activity,
            overlaps=not config.pipeline.stage_barrier,
            plain=no_ray or config.ray.actor_logs,
        ) as progress,
        MetricsWriter(start.folder) as writer,
        Signals() as signals,
    ):
        progress.on_stage("start", 0, 1)
        async with wiring(config, inputs, start.folder, activity) as roles:
            with _cluster_observers(no_ray=no_ray) as of_cluster:
                pipeline = build_pipeline(
                    config,
                    roles=watch_roles(roles, activity, in_process=no_ray, has_teacher=config.teacher_group),
                    inputs=inputs,
                    folder=start.folder,
                    observer=Observers([writer, trackers, progress, *of_cluster]),
                    activity=activity,
                )
                signals.hand_over(pipeline)
                return await pipeline.run(resume_from=start.checkpoint, evaluated=evaluated)


@contextmanager
def _cluster_observers(*, no_ray: bool) -> Iterator[tuple[Observer, ...]]:
    if no_ray:
        yield ()
        return
    from actors.ray_metrics import RayMetrics

    with RayMetrics() as metrics:
        yield (metrics,)


@contextmanager
def _tracing(config: TrdConfig, start: _Start, activity: RoleActivity) -> Iterator[None]:
    if config.run.trace_steps == 0:
        yield
        return
    with TraceWriter(
        start.folder.trace, num_steps=config.run.trace_steps, first_step=start.first_step
    ) as trace:
        activity.listen(trace)
        yield


def _wiring(*, no_ray: bool) -> Wiring:
    if no_ray:
        from launch.wiring_local import local_roles

        return lambda config, inputs, _folder, _activity: local_roles(config, inputs)
    from launch.wiring_ray import ray_roles

    return ray_roles


def _close(folder: RunFolder, result: RunResult) -> None:
    console.print(closing_table(read_metrics(folder.metrics), read_evals(folder.eval)))
    report = write_report(folder.path)
    show(f"run folder  {folder.path}\nreport      {report}")
    if result.interrupted:
        show(f"stopped after step {result.learner_step}; continue with --resume")


if __name__ == "__main__":
    from launch.cli import main

    sys.argv = [sys.argv[0], "train", *sys.argv[1:]]
    main()
