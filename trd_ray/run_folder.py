"""The folder of one run: its names, its checkpoints, and what is dropped on resume.

A checkpoint is written under a temporary name and renamed when it is whole, so a folder called
`step_N` is always complete, whenever the writer was killed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trd_ray.disk import flush, flush_tree
from trd_ray.errors import ConfigError, DataError, describe
from trd_ray.folder_lock import only_driver
from trd_ray.json_lines import read_torn
from trd_ray.paths import user_path

_log = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"step_(\d+)")
_TRAJECTORIES = re.compile(r"step_(\d+)\.parquet")
_UNFINISHED = ".unfinished"
_REMOVED = ".removed"
# A learner that was killed while it saved leaves its own unfinished folder beside that of the run.
_LEFT_OVER = (_UNFINISHED, f"{_UNFINISHED}.partial", _REMOVED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """One complete checkpoint."""

    learner_step: int
    path: Path


class RunFolder:
    """Names and life cycle of everything in a run folder. Building one touches no file."""

    def __init__(self, path: Path | str) -> None:
        self.path = user_path(path, where="run folder")

    @classmethod
    def create(cls, path: Path | str) -> RunFolder:
        """Make the folder of a new run. Raises `ConfigError` if it already holds one, or is a file."""
        folder = cls(path)
        folder.require_free()
        folder.trajectories.mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
        return folder

    def require_free(self) -> None:
        """Raise `ConfigError` if a run is here already, or a file."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(
                describe(
                    "the run folder is a file", where="run.dir", got=self.path,
                    expected="a folder, or a name that is not taken", remedy="name another folder in run.dir",
                )
            )  # fmt: skip
        if self.holds_run():
            raise ConfigError(
                describe(
                    "the run folder already holds a run", where="run.dir", got=self.path,
                    expected="an empty or new folder",
                    remedy="add --resume to continue that run, or name another folder in run.dir",
                )
            )  # fmt: skip
        place = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise ConfigError(
                describe(
                    "the run folder cannot be made", where="run.dir",
                    got=f"{self.path}: {place} is {'not to be written in' if place.is_dir() else 'a file'}",
                    expected="a folder that may be written in", remedy="name another folder in run.dir",
                )
            )  # fmt: skip

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only driver of this run while the block runs; also ends with the process.

        Raises `ConfigError` if another driver is at it.
        """
        with only_driver(self.path, complaint="another process drives this run", where="run.dir"):
            yield

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """Open the folder of an existing run. Raises `ConfigError` if it holds none."""
        folder = cls(path)
        if not folder.holds_run():
            raise ConfigError(
                describe(
                    "the folder holds no run", where="run.dir", got=folder.path,
                    expected=f"a folder with {folder.config.name} or {folder.metrics.name}",
                    remedy="check the path; a new run is started without --resume",
                )
            )  # fmt: skip
        return folder

    def holds_run(self) -> bool:
        """Whether any run has written here."""
        files = (self.config, self.metrics, self.eval)
        return any(file.exists() for file in files) or self.latest_checkpoint() is not None

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def eval(self) -> Path:
        return self.path / "eval.jsonl"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def buffer_log(self) -> Path:
        """What the learner trained on, if `pipeline.log_url` does not name another place."""
        return self.path / "buffer_log"

    @property
    def replay(self) -> Path:
        """Which run a replay replayed, and with what result; only in the folder of a replay."""
        return self.path / "replay.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        """The ids of this run in the trackers where it is open."""
        return self.path / "trackers.json"

    @property
    def trace(self) -> Path:
        return self.path / "trace.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def set_aside(self) -> Path:
        """Rows that a resume took out of the run, one folder a resume."""
        return self.path / "set_aside"

    def checkpoint(self, learner_step: int) -> Path:
        """Where the complete checkpoint of a step is, or will be."""
        return self.checkpoints / f"step_{learner_step}"

    @contextmanager
    def writing_checkpoint(self, learner_step: int) -> Iterator[Path]:
        """Give a fresh folder to write into; it becomes `checkpoint(learner_step)` if the block succeeds.

        After an error the unfinished folder stays for inspection until the next attempt or
        `prune_checkpoints`; it never counts as a checkpoint.
        """
        unfinished = self.checkpoints / f"step_{learner_step}{_UNFINISHED}"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        yield unfinished
        # Older ones are deleted next: a machine that loses its power must not have lost this one then.
        flush_tree(unfinished)
        final = self.checkpoint(learner_step)
        if final.exists():
            self._remove(final)
        unfinished.rename(final)
        flush(self.checkpoints)

    def complete_checkpoints(self) -> tuple[Checkpoint, ...]:
        """Oldest first."""
        if not self.checkpoints.is_dir():
            return ()
        found = (
            Checkpoint(learner_step=int(match[1]), path=path)
            for path in self.checkpoints.iterdir()
            if path.is_dir() and (match := _CHECKPOINT.fullmatch(path.name)) and any(path.iterdir())
        )
        return tuple(sorted(found, key=lambda checkpoint: checkpoint.learner_step))

    def latest_checkpoint(self) -> Checkpoint | None:
        """The complete checkpoint with the most steps; None if there is none."""
        return next(reversed(self.complete_checkpoints()), None)

    def prune_checkpoints(self, *, keep: int) -> tuple[Path, ...]:
        """Delete all but the newest `keep` complete checkpoints, and unfinished ones; returns those
        complete ones that are gone. Not to be called while a checkpoint is written."""
        if keep < 1:
            raise ValueError(f"prune_checkpoints: keep is {keep}; expected 1 or more")
        old = self.complete_checkpoints()[:-keep]
        for checkpoint in old:
            self._remove(checkpoint.path)
        for left_over in self.checkpoints.glob("step_*"):
            if left_over.name.endswith(_LEFT_OVER):
                shutil.rmtree(left_over)
        return tuple(checkpoint.path for checkpoint in old)

    def _remove(self, path: Path) -> None:
        # Renamed first: a process killed halfway through the deletion leaves no torn `step_N`.
        removed = path.with_name(path.name + _REMOVED)
        if removed.exists():
            shutil.rmtree(removed)
        path.rename(removed)
        shutil.rmtree(removed)

    def rewind(self, learner_step: int) -> int:
        """Take out everything after `learner_step`, so that a resumed run writes no step twice.

        Rows of metrics.jsonl and eval.jsonl, lines that were never finished, files of trajectories/
        and later checkpoints (of a run that is taken up from an older one: the next resume would
        take them for its own) go to a folder of their own under `set_aside`; nothing is lost.
        Returns how many rows, files and checkpoints were moved.
        """
        number = 1 + len(list(self.set_aside.glob("resume_*"))) if self.set_aside.is_dir() else 1
        aside = self.set_aside / f"resume_{number}_from_step_{learner_step}"
        moved = sum(_rewind_lines(file, learner_step, aside) for file in (self.metrics, self.eval))
        late = [
            file
            for file in sorted(self.trajectories.glob("step_*.parquet"))
            if (match := _TRAJECTORIES.fullmatch(file.name)) and int(match[1]) > learner_step
        ]
        late += [c.path for c in self.complete_checkpoints() if c.learner_step > learner_step]
        for path in late:
            (aside / path.parent.name).mkdir(parents=True, exist_ok=True)
            path.rename(aside / path.parent.name / path.name)
        moved += len(late)
        if moved:
            _log.info(
                "resume from step %d: %d rows, files and checkpoints set aside in %s",
                learner_step,
                moved,
                aside,
            )
        return moved


def _rewind_lines(path: Path, learner_step: int, aside: Path) -> int:
    """Move the rows after `learner_step` and a torn last line to `aside`; returns how many."""
    if not path.exists():
        return 0
    whole, torn = read_torn(path)
    kept: list[str] = []
    late: list[str] = []
    for number, line in enumerate(whole.split("\n"), start=1):
        if line.strip():
            (kept if _step_of(line, path, number) <= learner_step else late).append(line)
    if torn:
        late.append(torn)
    if not late:
        return 0
    aside.mkdir(parents=True, exist_ok=True)
    # First the copy, then the file: a crash in between repeats rows aside but loses none.
    (aside / path.name).write_text("".join(line + "\n" for line in late), encoding="utf-8")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
    return len(late)


def _step_of(line: str, path: Path, number: int) -> int:
    try:
        step = json.loads(line)["learner_step"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        step = error
    if not isinstance(step, int):
        raise DataError(
            describe(
                "a row of the run's log cannot be read", where=f"{path}, line {number}", got=line[:80],
                expected="a JSON object with a whole number learner_step",
                remedy="repair or delete that line, then resume again",
            )
        )  # fmt: skip
    return step
