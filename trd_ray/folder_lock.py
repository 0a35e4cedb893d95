"""One driver a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trd_ray.errors import ConfigError, describe


@contextmanager
def only_driver(folder: Path, *, complaint: str, where: str) -> Iterator[None]:
    """Hold the lock of an existing folder while the block runs; it also ends with the process.

    Raises `ConfigError` with `complaint` if another driver holds it; `where` is the option that names it.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                describe(
                    complaint, where=where, got=folder, expected="one driver",
                    remedy="wait for it or stop it, then add --resume",
                )
            ) from error  # fmt: skip
        yield
