"""Symbolic comparison of two answers, in a process that can be stopped.

math-verify limits its time with signals, which work in the main thread of a process only, and some
expressions (`10^{10^{10}}`) would take all memory or never return. So it runs in a child process: the
child has a limit on memory, each question a limit on time, and a child that dies or is late is replaced.
The child ends by itself when this process does, because its standard input closes.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from functools import lru_cache

logger = logging.getLogger(__name__)

_START_LIMIT_S = 60.0
"""Until a new child has imported its libraries."""


class SymbolicJudge:
    """Asks a child process whether two answers are equal. Starts it when first asked."""

    def __init__(self, *, limit_s: float) -> None:
        """`limit_s` is the time for one question; the answer of a question that takes longer is no."""
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def equal(self, expected: str, found: str) -> bool:
        """Whether `found` has the value of `expected`; False if that cannot be told. Never raises on
        odd text. Waits for questions of other threads."""
        with self._lock:
            child = self._ensure_child()
            reply = None if child is None else self._ask(child, expected, found)
            if reply is None:
                self._stop_child()
                logger.warning(
                    "no verdict on answer %.100r against %.100r: counted as wrong", found, expected
                )
            return reply is True

    def close(self) -> None:
        """Stop the child, if there is one. A later question starts a new one."""
        with self._lock:
            self._stop_child()

    def _ensure_child(self) -> subprocess.Popen[bytes] | None:
        """The running child, or a new one once it says that it is ready; None if it cannot start."""
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._child = subprocess.Popen(
            [sys.executable, "-m", "trd_ray.tasks.math.symbolic_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        if _read_line(self._child, limit_s=_START_LIMIT_S) is None:
            logger.warning("the symbolic grader did not start within %.0f s", _START_LIMIT_S)
            return None
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], expected: str, found: str) -> bool | None:
        """The child's reply; None if it is late or has died."""
        assert child.stdin is not None
        request = json.dumps([expected, found]).encode("ascii") + b"\n"
        try:
            child.stdin.write(request)
        except BrokenPipeError:
            return None
        line = _read_line(child, limit_s=self._limit_s)
        return None if line is None else line == b"true"

    def _stop_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            pipe.close()


def _read_line(child: subprocess.Popen[bytes], *, limit_s: float) -> bytes | None:
    """One line of the child's output without its end; None if the child ends or is late."""
    assert child.stdout is not None
    end = time.monotonic() + limit_s
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))
        chunk = child.stdout.read(64) if ready else b""
        if not chunk:
            return None
        line += chunk
    return line.strip()


@lru_cache(maxsize=1)
def shared_judge() -> SymbolicJudge:
    """The judge of this process."""
    judge = SymbolicJudge(limit_s=5.0)
    atexit.register(judge.close)
    return judge
