"""Writing a run's files: what the disk refuses is an error that says which file and what to do."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trd_ray.errors import DiskError, DiskRefusedError, TrdRayError, describe

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)


def is_refusal(error: OSError) -> bool:
    """Whether the disk is full or may not be written to, and not something else that may pass."""
    return error.errno in _REFUSED


def disk_error(error: OSError, where: str) -> DiskError:
    """What `error` means for a run at `where`: a `DiskRefusedError` if no other write would fare better."""
    is_full = error.errno in _FULL
    kind = DiskRefusedError if is_refusal(error) else DiskError
    return kind(
        describe(
            "the disk of the run folder is full" if is_full else "a file of the run cannot be written",
            where=where,
            got=f"{type(error).__name__}: {error}",
            expected="room on the disk and the right to write",
            remedy=f"{'free some space' if is_full else 'make it writable'}, then --resume",
        )
    )


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Raises the `disk_error` of `where` for an `OSError` of the block."""
    try:
        yield
    except TrdRayError:
        raise  # some are also an OSError: a call that took too long
    except OSError as error:
        raise disk_error(error, str(where)) from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, in one go: whoever reads it finds the old text or the new.

    Raises `DiskError`; then the old text is there.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def flush_tree(folder: Path) -> None:
    """Wait until all files below `folder`, and their names, are on the disk. Raises `OSError`."""
    for place, _, files in os.walk(folder):
        for path in (*(os.path.join(place, name) for name in files), place):
            flush(path)


def flush(path: str | Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder, and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Write at the end of a file that has no buffer: all of it, or nothing and an `OSError`.

    Without a buffer, what the disk refused does not come back when the file is closed.
    """
    size, rest = os.fstat(file.fileno()).st_size, memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) or 0 :]
    except OSError:
        file.truncate(size)
        raise


# Less is no room for any tensor file.
_FULL_BYTES = 2**20


@contextmanager
def saving_tensors(folder: Path) -> Iterator[None]:
    """An `OSError` where torch, safetensors and tokenizers raise errors of their own because the disk of
    `folder` is full. safetensors takes away what it could not finish, so there may be room again by then."""
    try:
        yield
    except (OSError, TrdRayError):
        raise
    except Exception as error:  # tokenizers raise nothing narrower
        if _says_full(error) or shutil.disk_usage(folder).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def _says_full(error: Exception) -> bool:
    return any(os.strerror(number) in str(error) for number in _FULL)
