"""Ctrl-C and SIGTERM: a run ends with a checkpoint, whatever it is doing ends clean."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Protocol, Self

log = logging.getLogger(__name__)


class Stoppable(Protocol):
    """A run, or a replay of one."""

    def request_stop(self) -> None:
        """End with a checkpoint, after the step in hand at the latest."""
        ...


class Signals:
    """Owns the handlers while the block runs.

    Before `hand_over`, and at the second signal after it, the current task is cancelled: what it
    started ends in its `finally` blocks. The first one after it asks the pipeline to stop.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._pipeline: Stoppable | None = None
        self._asked = False

    def hand_over(self, pipeline: Stoppable) -> None:
        """From now on there is a pipeline to ask."""
        self._pipeline = pipeline

    def _on_signal(self) -> None:
        if self._pipeline is not None and not self._asked:
            self._asked = True
            log.warning("stopping after a checkpoint; once more to stop at once")
            self._pipeline.request_stop()
        elif self._main is not None:
            self._main.cancel()

    def __enter__(self) -> Self:
        for number in self._SIGNALS:
            self._loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._SIGNALS:
            self._loop.remove_signal_handler(number)
