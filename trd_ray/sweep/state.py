"""The state of a sweep on disk: what has become of each trial, and what may change before a resume."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

from trd_ray.config import TrdConfig
from trd_ray.config_loader import dump_config, load_config
from trd_ray.disk import write_whole
from trd_ray.errors import ConfigError, DataError, describe
from trd_ray.folder_lock import only_driver
from trd_ray.resume import differences
from trd_ray.run_folder import RunFolder
from trd_ray.sweep.axes import Axis, Point, Value
from trd_ray.sweep.spec import Sweep
from trd_ray.sweep.trials import Trial, TrialConfigs

log = logging.getLogger(__name__)

_VERSION = 1
# What may change for a trial that has run: nothing that its numbers depend on.
_MAY_CHANGE = (
    "run.dir",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.trackers",
    "run.trace_steps",
    "tracking.",
    "teacher.engine.",
    "generator.engine.",
    "teacher.resources.",
    "generator.resources.",
    "learner.resources.",
    "teacher.num_actors",
    "generator.num_actors",
    "timeouts.",
    "faults.",
    "ray.",
)


class TrialStatus(StrEnum):
    """What has become of a trial."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    STOPPED_EARLY = "stopped early"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_final(self) -> bool:
        """A resume does not touch it."""
        return self in (TrialStatus.DONE, TrialStatus.STOPPED_EARLY)


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial in the state file."""

    name: str
    variant: str
    seed: int | None
    settings: Point
    status: TrialStatus = TrialStatus.PENDING
    attempts: int = 0
    """Times that it was started."""
    spent_s: float = 0.0
    """Seconds of all attempts."""
    message: str = ""
    """Why it failed."""

    @classmethod
    def of(cls, trial: Trial) -> TrialRecord:
        return cls(name=trial.name, variant=trial.variant, seed=trial.seed, settings=trial.settings)

    @property
    def trial(self) -> Trial:
        return Trial(name=self.name, variant=self.variant, seed=self.seed, settings=self.settings)


class SweepFolder:
    """Names of everything in a sweep folder. Building one touches no file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def state(self) -> Path:
        return self.path / "sweep.json"

    @property
    def options(self) -> Path:
        """The options of the sweep file at the last start, but for its axes; resolved."""
        return self.path / "options.yaml"

    @property
    def trials(self) -> Path:
        return self.path / "trials"

    @property
    def tune(self) -> Path:
        """Ray Tune's own records; not needed for a resume."""
        return self.path / "tune"

    def config(self, name: str) -> Path:
        """The resolved configuration that a trial is started with."""
        return self.path / "configs" / f"{name}.yaml"

    def log(self, name: str) -> Path:
        """What a trial printed."""
        return self.path / "logs" / f"{name}.log"

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.trials / name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only driver of this sweep while the block runs. Raises `ConfigError` if another is."""
        self.path.mkdir(parents=True, exist_ok=True)
        with only_driver(self.path, complaint="another process drives this sweep", where="dir"):
            yield


class SweepState:
    """All records, in the order of the sweep file; each change is on disk when the call returns."""

    def __init__(self, folder: SweepFolder, records: Sequence[TrialRecord]) -> None:
        self._folder = folder
        self._records = {record.name: record for record in records}

    @classmethod
    def read(cls, folder: SweepFolder) -> SweepState:
        """Raises `ConfigError` if the folder holds no sweep, `DataError` if the file cannot be read."""
        if not folder.state.is_file():
            raise ConfigError(
                describe(
                    "the folder holds no sweep", where="dir", got=folder.path,
                    expected=f"a folder with {folder.state.name}",
                    remedy="check the path; a new sweep is started without --resume",
                )
            )  # fmt: skip
        try:
            rows = json.loads(folder.state.read_text(encoding="utf-8"))
            records = [_record(row) for row in rows["trials"]] if rows["version"] == _VERSION else None
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise _unreadable(folder.state, error) from error
        if records is None:
            raise _unreadable(folder.state, f"version {rows['version']}")
        return cls(folder, records)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        return tuple(self._records.values())

    def __getitem__(self, name: str) -> TrialRecord:
        return self._records[name]

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def put(self, record: TrialRecord) -> None:
        """Add or replace one, and write the file."""
        self._records[record.name] = record
        self.write()

    def write(self) -> None:
        """Atomically. Raises `DiskError`."""
        rows = {"version": _VERSION, "trials": [asdict(record) for record in self.records]}
        write_whole(self._folder.state, json.dumps(rows, indent=1, allow_nan=False))


def _record(row: Mapping[str, object]) -> TrialRecord:
    settings = tuple((str(key), value) for key, value in row["settings"])  # type: ignore[attr-defined]
    known = {**row, "settings": settings, "status": TrialStatus(str(row["status"]))}
    return TrialRecord(**known)  # type: ignore[arg-type]


def _unreadable(path: Path, got: object) -> DataError:
    return DataError(
        describe(
            "the state of the sweep cannot be read", where=str(path), got=got,
            expected=f"version {_VERSION}, written by trd-ray sweep",
            remedy="restore the file; the run folders under trials/ are not touched",
        )
    )  # fmt: skip


def resumed_records(
    state: SweepState, wanted: Mapping[str, tuple[Trial, TrdConfig]], folder: SweepFolder, *, open_ended: bool
) -> tuple[TrialRecord, ...]:
    """The records to go on with: ended ones as they are, others pending; new trials come last.

    Args:
        open_ended: trials that are not wanted may be there (those that Optuna proposed).

    Raises `ConfigError` if a trial that has run is gone from the sweep file or has other options there.
    """
    gone = [r.name for r in state.records if r.name not in wanted and r.attempts]
    if gone and not open_ended:
        raise _changed(folder, f"gone: {', '.join(gone)}")
    changed = []
    for name, (_, config) in wanted.items():
        if name in state and state[name].attempts and folder.config(name).is_file():
            changed += _changes(name, folder.config(name), config)
    if changed:
        raise _changed(folder, "; ".join(changed))
    new = [name for name in wanted if name not in state]
    if new and not open_ended:
        log.info("new in the sweep file: %s", ", ".join(new))
    kept = [r for r in state.records if r.name in wanted or (open_ended and r.attempts)]
    records = [r if r.status.is_final else replace(r, status=TrialStatus.PENDING) for r in kept]
    return (*records, *(TrialRecord.of(wanted[name][0]) for name in new if not open_ended))


def require_same_search(sweep: Sweep, state: SweepState, folder: SweepFolder) -> None:
    """A resumed open-ended search must hold what it has proposed: its trials are not in the sweep file.

    Raises `ConfigError` naming the axis that no longer holds a trial that has run, or each option that the
    sweep file now gives such a trial otherwise.
    """
    tried = [record for record in state.records if record.attempts]
    # Axes first: a value that is gone may name a file that is gone too.
    for record in tried:
        _require_on_axes(sweep, folder, record)
    configs, changed = TrialConfigs(sweep), []
    for record in tried:
        if folder.config(record.name).is_file():
            changed += _changes(record.name, folder.config(record.name), configs.config(record.trial))
    if changed:
        raise _changed(folder, "; ".join(changed))


def _require_on_axes(sweep: Sweep, folder: SweepFolder, record: TrialRecord) -> None:
    values = dict(record.settings)
    for axis in sweep.axes:
        if not _holds(axis, values):
            shown = {key: values.get(key, "no value") for key in axis.keys}
            raise _off_axis(folder, record, axis.place, ", ".join(axis.keys), shown, _span(axis))
    known = {key for axis in sweep.axes for key in axis.keys}
    for key in values:
        if key not in known:
            raise _off_axis(folder, record, str(sweep.path), key, {key: values[key]}, "no such axis")


def _holds(axis: Axis, values: Mapping[str, Value]) -> bool:
    if not values.keys() >= set(axis.keys):
        return False
    if not axis.kind.is_range:
        return tuple((key, values[key]) for key in axis.keys) in axis.points
    value = values[axis.id]
    return isinstance(value, int | float) and not isinstance(value, bool) and axis.low <= value <= axis.high


def _span(axis: Axis) -> str:
    return f"{axis.low:g} to {axis.high:g}" if axis.kind.is_range else str([dict(p) for p in axis.points])


def _off_axis(
    folder: SweepFolder, record: TrialRecord, place: str, name: str, got: Mapping[str, Value], now: str
) -> ConfigError:
    return ConfigError(
        describe(
            f"the axis {name} no longer holds a trial that has run", where=place,
            got=f"trial {record.name} of {folder.path} with {dict(got)}; the axis now: {now}",
            expected="the axes that the search began with; they may gain values, and ranges may widen",
            remedy="restore the axis, or start a new sweep with another sweep.dir",
        )
    )  # fmt: skip


def _changes(name: str, saved: Path, config: TrdConfig) -> list[str]:
    differing = differences(load_config(saved), config)
    for change in differing:
        if change.key.startswith(_MAY_CHANGE):
            log.warning("trial %s goes on with another %s", name, change.words)
    return [f"{name}: {c.words}" for c in differing if not c.key.startswith(_MAY_CHANGE)]


def _changed(folder: SweepFolder, got: str) -> ConfigError:
    return ConfigError(
        describe(
            "the sweep file has changed for trials that have run", where=str(folder.path), got=got,
            expected="the same options for them; trials may be added (more values, seeds or samples)",
            remedy="undo the change, or start a new sweep with another sweep.dir",
        )
    )  # fmt: skip


def write_trial_config(folder: SweepFolder, name: str, config: TrdConfig) -> Path:
    """What the trial is started with. Raises `DiskError`."""
    path = folder.config(name)
    write_whole(path, dump_config(config))
    return path
