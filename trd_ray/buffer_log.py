"""The durable log of the shared buffer: every record of a step, with its target, in one Parquet segment.

    <log>/step_NNNNNN.parquet       trajectories that ended in the step, in the order of its batch
    <log>/set_aside/...             segments that a resume took out of the run
    <log>/run.txt                   the run folder that it belongs to, if it is elsewhere

A segment is written under a temporary name and renamed when it is whole, on any file system of fsspec: one
that renames by copying gives the copy its name only when it is complete. So a segment that is there was
written to the end, whenever its writer was killed; what was damaged later is refused by its checksums.
A log has one writer, which holds the lock of the run folder; readers may come at any time.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from trd_ray.config import PipelineConfig
from trd_ray.disk import flush
from trd_ray.errors import (
    ConfigError,
    DataError,
    MissingDependencyError,
    RunFailedError,
    describe,
)
from trd_ray.outcomes import Outcome
from trd_ray.record_schema import RecordSchema
from trd_ray.run_folder import RunFolder
from trd_ray.types import Target, TeacherHidden, TopKTargets, Trajectory

_SEGMENT = re.compile(r"step_(\d{6,})\.parquet")
_TEMPORARY = re.compile(r"\.step_\d+\.parquet\.tmp")
_SET_ASIDE = "set_aside"
_OWNER = "run.txt"
# A row group is held in memory while it is written, and a column of one must stay below 2 GiB.
_ROW_GROUP_BYTES = 64 * 2**20
# Hidden states hardly shrink; a higher level would only take time.
_ZSTD_LEVEL = 1

_SCHEMA = RecordSchema(Trajectory)


class BufferLog:
    """The segments of one log. Building one touches no file."""

    def __init__(self, url: str) -> None:
        """Args:
            url: a folder, or any fsspec URL of one.

        Raises `MissingDependencyError` if the package for the URL's protocol is not installed, and
        `ConfigError` if there is no such protocol.
        """
        self.url = url
        try:
            self._fs, self._path = url_to_fs(url)
        except ImportError as error:
            raise MissingDependencyError(
                describe(
                    "a package for this kind of URL is not installed", where="pipeline.log_url",
                    got=str(error), expected="the fsspec file system of the URL's protocol",
                    remedy="install the package that the message names, or keep the log in a local folder",
                )
            ) from error  # fmt: skip
        except ValueError as error:
            raise ConfigError(
                describe(
                    "this kind of URL is not known", where="pipeline.log_url", got=f"{url}: {error}",
                    expected="a folder, or a URL that fsspec knows", remedy="correct pipeline.log_url",
                )
            ) from error  # fmt: skip

    def require_empty(self) -> None:
        """Raises `ConfigError` if the log of a run is here already: two runs must not share one."""
        if self.steps():
            raise ConfigError(
                describe(
                    "the log already holds a run", where="pipeline.log_url", got=self.url,
                    expected="an empty or new folder",
                    remedy="name another folder, or add --resume to continue the run that it belongs to",
                )
            )  # fmt: skip

    def claim(self, run_dir: Path) -> None:
        """Say in the log that it belongs to a run, before its first segment does: another run that starts
        later is refused here, unless nothing was ever begun in the folder that is named.

        Raises `ConfigError` if it is another run's, or if nothing can be written there.
        """
        owner, path = str(run_dir.resolve()), self._join(_OWNER)
        try:
            self._fs.makedirs(self._path, exist_ok=True)
            there = self.owner()
            if not there or not (self.steps() or RunFolder(there).holds_run()):
                self._fs.pipe_file(path, owner.encode())
            there = self.owner()
        except OSError as error:
            raise ConfigError(
                describe(
                    "the log's place cannot be written", where="pipeline.log_url",
                    got=f"{path}: {type(error).__name__}: {error}", expected="a place to write to",
                    remedy="make it writable, name another one, or set pipeline.log_targets=false",
                )
            ) from error  # fmt: skip
        if there != owner:
            raise ConfigError(
                describe(
                    "the log belongs to another run", where="pipeline.log_url",
                    got=f"{path} names {there}", expected=f"{owner}, or no such file",
                    remedy="name another folder; if that run is this one, and was moved, delete the file",
                )
            )  # fmt: skip

    def owner(self) -> str:
        """The run folder that has claimed it; empty if none has. Raises `DataError` if it cannot be read."""
        path = self._join(_OWNER)
        self._fs.invalidate_cache(self._path)
        try:
            owner: bytes = self._fs.cat_file(path)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise _unreachable(error, where=path) from error
        return owner.decode(errors="replace")

    def open_for_writing(self) -> None:
        """Make the folder, and delete what a killed writer left under temporary names.

        Raises `RunFailedError` if the folder cannot be made.
        """
        try:
            self._fs.makedirs(self._path, exist_ok=True)
            for name in self._names():
                if _TEMPORARY.fullmatch(name):
                    self._fs.rm_file(self._join(name))
        except OSError as error:
            raise _write_failed(error, where=self.url) from error

    def steps(self) -> tuple[int, ...]:
        """The learner steps that have a segment, in order; () if there is no folder.

        Raises `DataError` if the folder cannot be read.
        """
        matches = (_SEGMENT.fullmatch(name) for name in self._names())
        return tuple(sorted(int(match[1]) for match in matches if match))

    def write_step(self, trajectories: Sequence[Trajectory], *, learner_step: int) -> str:
        """Write all trajectories that ended in a step; returns the path of the segment.

        Only those that are consumed keep their targets: nothing is learned from the others.
        Blocks until the segment is on disk. Raises `RunFailedError` if it cannot be written, as on a
        full disk; then there is no segment, or the one that there was.
        """
        name = f"step_{learner_step:06d}.parquet"
        final, temporary = self._join(name), self._join(f".{name}.tmp")
        records = [
            t if t.outcome is Outcome.CONSUMED else dataclasses.replace(t, target=None) for t in trajectories
        ]
        try:
            self._fs.makedirs(self._path, exist_ok=True)
            try:
                with self._fs.open(temporary, "wb") as file:
                    _write(records, file)
                    if self._is_local:
                        file.flush()
                        os.fsync(file.fileno())
                self._rename(temporary, final)
            except OSError:
                with suppress(OSError):
                    self._fs.rm_file(temporary)
                raise
        except OSError as error:
            raise _write_failed(error, where=final) from error
        return final

    def read_step(self, learner_step: int) -> tuple[Trajectory, ...]:
        """What `write_step` was given, in the same order; rejected trajectories without targets.

        Raises `DataError` naming a segment that is missing, damaged, or of another version.
        """
        path = self._join(f"step_{learner_step:06d}.parquet")
        remedy = (
            "replay or resume from a step before it: move this file and later segments to another folder; "
            "--resume then goes on from the newest checkpoint before it"
        )
        try:
            with self._fs.open(path, "rb") as file:
                return _read(file)
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise _unreadable(error, where=path, remedy=remedy) from error

    def rewind(self, learner_step: int) -> int:
        """Move the segments after `learner_step` aside, so that a resumed run writes no step twice.

        They go to a folder of their own under `set_aside` in the log. Returns how many were moved.
        Raises `RunFailedError` if one cannot be moved.
        """
        late = [step for step in self.steps() if step > learner_step]
        if not late:
            return 0
        try:
            number = 1 + sum(name.startswith("resume_") for name in self._names(_SET_ASIDE))
            aside = self._join(_SET_ASIDE, f"resume_{number}_from_step_{learner_step}")
            self._fs.makedirs(aside, exist_ok=True)
            for step in late:
                name = f"step_{step:06d}.parquet"
                self._rename(self._join(name), posixpath.join(aside, name))
        except OSError as error:
            raise _write_failed(error, where=self.url) from error
        return len(late)

    @property
    def _is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def _join(self, *names: str) -> str:
        return posixpath.join(self._path, *names)

    def _names(self, folder: str = "") -> list[str]:
        """Names of the files in the log, as they are now."""
        path = self._join(folder) if folder else self._path
        self._fs.invalidate_cache(path)
        try:
            paths = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unreachable(error, where=path) from error
        return [posixpath.basename(str(path).rstrip("/")) for path in paths]

    def _rename(self, source: str, target: str) -> None:
        if not self._is_local:
            self._fs.mv(source, target)
            return
        os.replace(source, target)
        flush(posixpath.dirname(target))  # a rename is durable once the folder is


def run_log(pipeline: PipelineConfig, folder: RunFolder) -> BufferLog:
    """Where the log of a run is, whether it keeps one or not. Raises as `BufferLog`."""
    return BufferLog(pipeline.log_url or str(folder.buffer_log))


def write_records(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write trajectories with their targets to one file, as a part of a checkpoint.

    Raises `RunFailedError` if it cannot be written.
    """
    try:
        with path.open("wb") as file:
            _write(trajectories, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _write_failed(error, where=str(path)) from error


def read_records(path: Path) -> tuple[Trajectory, ...]:
    """What `write_records` was given. Raises `DataError` if the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, EOFError, ValueError, KeyError) as error:
        remedy = "resume from an older checkpoint: move the folder of this file away"
        raise _unreadable(error, where=str(path), remedy=remedy) from error


def _write(trajectories: Iterable[Trajectory], file: IO[bytes]) -> None:
    with pq.ParquetWriter(
        file,
        _SCHEMA.schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    ) as writer:
        for group in _groups(trajectories):
            writer.write_table(_SCHEMA.to_table(group))


def _groups(trajectories: Iterable[Trajectory]) -> Iterator[list[Trajectory]]:
    """Consecutive trajectories whose targets are about `_ROW_GROUP_BYTES` together."""
    group: list[Trajectory] = []
    num_bytes = 0
    for trajectory in trajectories:
        size = _target_bytes(trajectory.target)
        if group and num_bytes + size > _ROW_GROUP_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(trajectory)
        num_bytes += size
    if group:
        yield group


def _target_bytes(target: Target | None) -> int:
    match target:
        case TeacherHidden():
            return target.hidden.nbytes
        case TopKTargets():
            return target.topk_ids.nbytes + target.topk_logprobs.nbytes
        case _:
            return 0


def _read(file: IO[bytes]) -> tuple[Trajectory, ...]:
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    # A group at a time: each is held twice while it is decoded.
    return tuple(
        trajectory
        for group in range(parquet.num_row_groups)
        for trajectory in _SCHEMA.from_table(parquet.read_row_group(group))
    )


def _write_failed(error: OSError, *, where: str) -> RunFailedError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return RunFailedError(
        describe(
            "the disk of the buffer's log is full" if full else "the buffer's log cannot be written",
            where=where,
            got=f"{type(error).__name__}: {error}",
            expected="room for the trajectories of a step and their targets" if full else "a writable place",
            remedy=("free space there" if full else "make it writable")
            + ", or set pipeline.log_targets=false; then continue with --resume",
        )
    )


def _unreachable(error: OSError, *, where: str) -> DataError:
    return DataError(
        describe(
            "the buffer's log cannot be looked into",
            where="pipeline.log_url",
            got=f"{where}: {type(error).__name__}: {error}",
            expected="a folder that can be read",
            remedy="check the path or URL, and its credentials; or set pipeline.log_targets=false",
        )
    )


def _unreadable(error: Exception, *, where: str, remedy: str) -> DataError:
    missing = isinstance(error, FileNotFoundError)
    return DataError(
        describe(
            "a segment of the buffer's log is missing"
            if missing
            else "a file of logged trajectories is damaged",
            where=where,
            got="no such file" if missing else f"{type(error).__name__}: {error}",
            expected="a Parquet file that was written to the end by this version",
            remedy=remedy,
        )
    )
