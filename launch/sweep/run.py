"""`trd-ray sweep`: from a sweep file to a leaderboard."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from actors.cluster import join_cluster, leave_cluster
from launch.consoles import console, show
from launch.exits import started
from launch.preflight import check_packages, check_run
from launch.sweep.book import SweepBook
from launch.sweep.tables import leaderboard_table
from trd_ray.config import OptimizerConfig, RunConfig, TrdConfig
from trd_ray.disk import write_whole
from trd_ray.errors import ConfigError, TrdRayError, describe
from trd_ray.sweep.options import SearchKind
from trd_ray.sweep.spec import Sweep, dump_options
from trd_ray.sweep.state import (
    SweepFolder,
    SweepState,
    TrialRecord,
    TrialStatus,
    require_same_search,
    resumed_records,
    write_trial_config,
)
from trd_ray.sweep.trials import Trial, checked_trials

log = logging.getLogger(__name__)

_PACKAGES = ("ray", "pandas", "optuna")
_LEFT_OVER_S = 60.0

Wanted = Mapping[str, tuple[Trial, TrdConfig]]


def run_sweep(sweep: Sweep, *, resume: bool, command: tuple[str, ...] = ()) -> int:
    """Run all trials that have not ended. Returns the exit code: 0 all have, 1 some failed or wait.

    Args:
        command: in place of `trd-ray` in the trials' processes, to rehearse.

    Raises `ConfigError` and the like before anything is started.
    """
    wanted = checked_trials(sweep)
    check_packages(_PACKAGES)
    if not command:
        check_machine(sweep, wanted)
    folder = SweepFolder(sweep.folder.resolve())
    with folder.locked():
        state = _state(sweep, wanted, folder, resume=resume)
        return started(lambda: _run(sweep, wanted, folder, state, command))


def check_machine(sweep: Sweep, wanted: Wanted) -> None:
    """All checks of `trd-ray train`, once for trials that differ in seed and optimizer alone."""
    seen = set()
    for name, (_, config) in wanted.items():
        learner = dataclasses.replace(config.learner, optimizer=OptimizerConfig())
        essence = dataclasses.replace(config, run=RunConfig(), learner=learner)
        if essence in seen:
            continue
        seen.add(essence)
        try:
            check_run(config, no_ray=sweep.options.trials.no_ray)
        except TrdRayError as error:
            raise type(error)(f"trial {name}: {error}") from error


def _state(sweep: Sweep, wanted: Wanted, folder: SweepFolder, *, resume: bool) -> SweepState:
    by_optuna = sweep.options.search.kind is SearchKind.OPTUNA
    if resume:
        past = SweepState.read(folder)
        if by_optuna:
            require_same_search(sweep, past, folder)
        records = resumed_records(past, wanted, folder, open_ended=by_optuna)
    elif folder.state.exists():
        raise ConfigError(
            describe(
                "the folder already holds a sweep", where="dir", got=folder.path, expected="a new folder",
                remedy="add --resume to run its failed and pending trials, or give another sweep.dir",
            )
        )  # fmt: skip
    else:
        records = () if by_optuna else tuple(TrialRecord.of(trial) for trial, _ in wanted.values())
    state = SweepState(folder, records)
    for record in records:
        if record.status is TrialStatus.PENDING and record.name in wanted:
            write_trial_config(folder, record.name, wanted[record.name][1])
    write_whole(folder.options, dump_options(sweep.options))
    state.write()
    return state


def _run(
    sweep: Sweep, wanted: Wanted, folder: SweepFolder, state: SweepState, command: tuple[str, ...]
) -> int:
    # They import ray.tune and optuna, whose absence is reported before.
    from launch.sweep.queue import Proposals, TrialQueue
    from launch.sweep.trial import TrialWork
    from launch.sweep.tune import run_on_tune

    options = sweep.options
    configs = {name: config for name, (_, config) in wanted.items()}
    book = SweepBook(folder, state, options.metric)

    def on_new(record: TrialRecord, config: TrdConfig) -> None:
        configs[record.name] = config
        state.put(record)

    proposals = None
    if options.search.kind is SearchKind.OPTUNA:
        proposals = Proposals(sweep, state, folder, on_new=on_new)
    work = TrialWork(
        folder=folder.path,
        directory=Path.cwd(),
        metric=options.metric,
        trials=options.trials,
        command=command,
    )
    join_cluster(options.ray)
    try:
        run_on_tune(TrialQueue(state, proposals), work, book, options, lambda: configs)
    finally:
        leave_cluster()
        book.wait_for_processes(_LEFT_OVER_S)
        board = book.settle()
    console.print(leaderboard_table(board))
    show(f"sweep folder  {folder.path}\nleaderboard   {folder.path / 'leaderboard.html'}")
    return _exit_code(state, num_wanted=options.search.num_samples if proposals else 0)


def _exit_code(state: SweepState, *, num_wanted: int) -> int:
    waiting = [record.name for record in state.records if not record.status.is_final]
    if waiting:
        show(f"{len(waiting)} trials failed or wait: {', '.join(waiting)}; run them with --resume")
    return 1 if waiting or len(state.records) < num_wanted else 0
