"""Exit codes: what was bad input before a start is a failed run after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from trd_ray.errors import RunFailedError, TrdRayError

T = TypeVar("T")


def started(work: Callable[[], T]) -> T:
    """Run `work`, during which processes are running.

    Raises `RunFailedError` in place of errors that would mean exit code 2, "nothing was started".
    """
    try:
        return work()
    except RunFailedError:
        raise
    except TrdRayError as error:
        raise RunFailedError(f"{type(error).__name__}: {error}") from error
