"""All trackers of a run, as one observer of it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from trd_ray.choices import TrackerKind
from trd_ray.config import TrdConfig
from trd_ray.config_loader import plain_config
from trd_ray.disk import writing
from trd_ray.errors import ConfigError, brief, describe
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.run_folder import RunFolder
from trd_ray.scalars import eval_scalars, step_scalars
from trd_ray.secrets_mask import mask_text, mask_tree
from trd_ray.trackers.guard import GuardedTracker, GuardLimits, GuardReport
from trd_ray.trackers.registry import opener
from trd_ray.trackers.session import RunEnd, TrackedRun, Tracker

log = logging.getLogger(__name__)

Opener = Callable[[TrackerKind, TrackedRun], Callable[[], Tracker]]


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What all trackers of a run have in common."""

    config: TrdConfig
    folder: RunFolder
    first_step: int

    def tracked(self, known_id: str | None) -> TrackedRun:
        tracking = self.config.tracking
        config = mask_tree(plain_config(self.config))
        assert isinstance(config, Mapping)  # a tree of sections
        return TrackedRun(
            folder=self.folder,
            project=tracking.project,
            name=tracking.name or self.folder.path.resolve().name,
            tags=tracking.tags,
            offline=tracking.offline,
            mlflow_uri=tracking.mlflow_uri,
            config=config,
            first_step=self.first_step,
            known_id=known_id,
        )


class Trackers:
    """An `Observer` that passes numbers on to every tracker. Use it as a context manager.

    Entering opens them all and keeps the run's id in each in `trackers.json` of the run folder. Leaving ends
    them all, however the block ended, within `GuardLimits.close_s`.
    """

    def __init__(
        self,
        config: TrdConfig,
        folder: RunFolder,
        *,
        first_step: int = 1,
        limits: GuardLimits | None = None,
        open_with: Opener = opener,
    ) -> None:
        """
        Args:
            first_step: the next learner step; above 1 in a run that is resumed.
            open_with: in place of the real trackers, for tests.
        """
        self._start = _Start(config=config, folder=folder, first_step=first_step)
        self._limits = limits or GuardLimits()
        self._open_with = open_with
        self._guards: dict[TrackerKind, GuardedTracker] = {}
        self._ended = RunEnd.FINISHED

    def stopped(self) -> None:
        """The run ended early, and may be resumed."""
        self._ended = RunEnd.STOPPED

    def on_stage(self, stage: str, done: int, total: int) -> None:
        """Nothing is recorded within a step."""

    def on_step(self, metrics: StepMetrics) -> None:
        self._record(step_scalars(metrics), learner_step=metrics.learner_step)

    def on_eval(self, report: EvalReport) -> None:
        self._record(eval_scalars(report), learner_step=report.learner_step)

    def _record(self, scalars: Mapping[str, float], *, learner_step: int) -> None:
        for guard in self._guards.values():
            guard.record(scalars, learner_step=learner_step)

    def __enter__(self) -> Self:
        """Raises `ConfigError` if one cannot be opened; the others are closed."""
        known = _read_ids(self._start.folder.trackers)
        if set(self._start.config.run.trackers) - {TrackerKind.TENSORBOARD}:
            log.info("opening %s", ", ".join(self._start.config.run.trackers))
        deadline = time.monotonic() + self._limits.open_s
        for kind in dict.fromkeys(self._start.config.run.trackers):
            run = self._start.tracked(known.get(kind))
            self._guards[kind] = GuardedTracker(kind, self._open_with(kind, run), self._limits)
        try:
            for kind, guard in self._guards.items():
                known[kind] = _opened(guard, deadline=deadline)
            self._write_ids(known)
        except BaseException:
            self._close(RunEnd.FAILED)
            raise
        return self

    def _write_ids(self, ids: Mapping[str, str]) -> None:
        if not ids:
            return
        path = self._start.folder.trackers
        with writing(path):
            path.write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
            self._ended = RunEnd.STOPPED
        elif error is not None:
            self._ended = RunEnd.FAILED
        self._close(self._ended)

    def _close(self, ended: RunEnd) -> None:
        deadline = time.monotonic() + self._limits.close_s
        for guard in self._guards.values():
            guard.ask_to_end(ended)
        for guard in self._guards.values():
            _tell(guard.name, guard.join(deadline=deadline), limits=self._limits)
        self._guards.clear()


def _opened(guard: GuardedTracker, *, deadline: float) -> str:
    try:
        return guard.wait_open(deadline=deadline)
    except Exception as error:
        raise ConfigError(
            describe(
                f"the tracker {guard.name} cannot be opened",
                where="run.trackers",
                got=mask_text(f"{type(error).__name__}: {brief(error)}"),
                expected="a server or a disk that takes the run",
                remedy=f"mend that, set tracking.offline=true, or take {guard.name} out of run.trackers",
            )
        ) from error


def _tell(name: str, report: GuardReport, *, limits: GuardLimits) -> None:
    if report.is_hung:
        log.warning("%s did not end within %g s and is left behind", name, limits.close_s)
    if report.num_lost:
        log.warning(
            "%s lacks %d of the rows of metrics.jsonl and eval.jsonl, after %d failures; the first: %s",
            name, report.num_lost, report.num_failures, report.reason or "it did not answer",
        )  # fmt: skip
    elif report.num_failures:
        log.info("%s has every row, after %d failures", name, report.num_failures)


def _read_ids(path: Path) -> dict[str, str]:
    """Of the trackers in which this run was open before; {} if there are none."""
    if not path.exists():
        return {}
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        ids = None
    if not isinstance(ids, dict) or not all(isinstance(value, str) for value in ids.values()):
        raise ConfigError(
            describe(
                "the ids of this run in its trackers cannot be read", where=str(path),
                got="no JSON object of texts",
                expected='for example {"wandb": "3f9c..."}',
                remedy="delete the file: the run then goes on as a new one there",
            )
        )  # fmt: skip
    return ids
