"""`trd-ray train --replay RUN_DIR`: the learner's part of a run again, from the log of its buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from launch.consoles import console, show
from launch.exits import started
from launch.preflight import REAL_STACK, check_own_functions, check_packages, check_ports, check_resources
from launch.progress import Progress, closing_table
from launch.signals import Signals
from trd_ray.config import TrdConfig
from trd_ray.config_loader import dump_config
from trd_ray.disk import write_whole
from trd_ray.interfaces import Learner
from trd_ray.metrics import MetricsWriter, read_metrics
from trd_ray.observer import Observers
from trd_ray.placement_plan import learner_plan
from trd_ray.replay import LossDifference, Replay, ReplayResult, write_summary
from trd_ray.replay_plan import ModelPaths, ReplayPlan, plan_replay
from trd_ray.report import write_report
from trd_ray.run_folder import RunFolder
from trd_ray.trackers import Trackers, check_trackers


def replay(run_dir: Path, overrides: Sequence[str], *, no_ray: bool, dry_run: bool) -> int:
    """Replay to the end. Returns the exit code: 0 done, 1 stopped by a signal (after a checkpoint).

    Raises what `plan_replay` and the checks of the machine raise before anything is started, and the
    learner's errors after.
    """
    plan = plan_replay(run_dir, overrides)
    models = plan.model_paths()
    check_own_functions(plan.config.method)
    check_trackers(plan.config)
    if not no_ray:
        check_packages(REAL_STACK)
        check_resources(plan.config, learner_plan(plan.config))
        check_ports(plan.config)
    if dry_run:
        _show_plan(plan, no_ray=no_ray)
        return 0
    show(f"method: {plan.config.method.sentence()}")
    show(_intent(plan))
    folder = RunFolder.create(plan.config.run.dir)
    with folder.locked():
        with Trackers(plan.config, folder) as trackers:
            write_whole(folder.config, dump_config(plan.config))
            write_summary(plan, folder, None)
            result = started(lambda: asyncio.run(_run(plan, models, folder, trackers, no_ray=no_ray)))
            if result.interrupted:
                trackers.stopped()
        write_summary(plan, folder, result)
        _close(plan, folder, result)
    return 1 if result.interrupted else 0


async def _run(
    plan: ReplayPlan, models: ModelPaths, folder: RunFolder, trackers: Trackers, *, no_ray: bool
) -> ReplayResult:
    with (
        Progress(plan.num_steps, console=console, plain=no_ray or plan.config.ray.actor_logs) as progress,
        MetricsWriter(folder) as writer,
        Signals() as signals,
    ):
        progress.on_stage("start", 0, 1)
        async with _learner(plan.config, models, no_ray=no_ray) as learner:
            observer = Observers([writer, trackers, progress])
            replaying = Replay(plan, learner=learner, folder=folder, observer=observer)
            signals.hand_over(replaying)
            return await replaying.run()


def _learner(config: TrdConfig, models: ModelPaths, *, no_ray: bool) -> AbstractAsyncContextManager[Learner]:
    if no_ray:
        from launch.wiring_local import local_learner

        return local_learner(config, models)
    from launch.wiring_replay import ray_learner

    return ray_learner(config, models, learner_plan(config))


def _show_plan(plan: ReplayPlan, *, no_ray: bool) -> None:
    show(dump_config(plan.config))
    show(f"method: {plan.config.method.sentence()}")
    show(_intent(plan))
    names = ", ".join(seat.name for seat in learner_plan(plan.config).seats)
    show(f"placement: {'one process, no Ray' if no_ray else names}")


def _intent(plan: ReplayPlan) -> str:
    compared = "the losses are compared with the run's own"
    if plan.changed:
        compared = f"the losses may differ from the run's own: {'; '.join(plan.changed)}"
    return f"replay: {plan.num_steps} steps of {plan.source.path}; {compared}"


def _close(plan: ReplayPlan, folder: RunFolder, result: ReplayResult) -> None:
    console.print(closing_table(read_metrics(folder.metrics), ()))
    report = write_report(folder.path)
    if result.largest is not None and result.last is not None:
        show(_verdict(plan, largest=result.largest, last=result.last))
    show(f"run folder  {folder.path}\nreport      {report}")
    if result.interrupted:
        show(f"stopped after step {result.learner_step} of {plan.num_steps}; a replay starts anew each time")


def _verdict(plan: ReplayPlan, *, largest: LossDifference, last: LossDifference) -> str:
    if not plan.changed:
        return (
            f"largest relative difference to the run's losses: {largest.relative:.2g} "
            f"(step {largest.learner_step}: {largest.loss:.6g} here, {largest.run_loss:.6g} in the run)"
        )
    return (
        f"loss of step {last.learner_step}: {last.loss:.6g} here, {last.run_loss:.6g} in the run, with "
        f"{'; '.join(plan.changed)}"
    )
