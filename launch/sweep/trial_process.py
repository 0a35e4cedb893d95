"""One trial as a process of its own: started, watched, stopped with a checkpoint, never left behind.

Run as `python -m launch.sweep.trial_process OWNER ARGUMENTS`, it is the command line `trd-ray ARGUMENTS` that
ends, as by SIGTERM, when the process OWNER does, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from trd_ray.disk import writing

_PR_SET_PDEATHSIG = 1
_LINES_OF_MESSAGE = 12
# What Ray gives its own workers; a driver that finds it would take itself for one.
_KEPT_OF_RAY = ("RAY_TMPDIR", "RAY_AUTH", "RAY_USAGE", "RAY_ACCEL", "RAY_ADDRESS", "RAY_EXPERIMENTAL_NOSET")


def trial_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a trial that is started by a Ray worker."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith("RAY_") or name.startswith(_KEPT_OF_RAY)
    }


class TrialProcess:
    """Owns one process and its log."""

    def __init__(self, command: Sequence[str], *, log: Path, directory: Path) -> None:
        """Start it in a working directory; what it prints is added to `log`. Raises `DiskError`."""
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log
            self._start = log.stat().st_size if log.exists() else 0
            environment = trial_environment(os.environ) | {"COLUMNS": "120"}
            with log.open("ab") as file:
                # A session of its own: a Ctrl-C at the terminal is for the sweep, which stops it in order.
                self._process = subprocess.Popen(
                    command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    start_new_session=True, cwd=directory, env=environment,
                )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """End with a checkpoint. Asked twice, it would end without one: the caller asks once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within `timeout_s` seconds."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """At once; whatever it started ends with it, since engines watch their owner."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The end of what this process printed."""
        with self._log.open("rb") as file:
            file.seek(self._start)
            text = file.read().decode("utf-8", errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-_LINES_OF_MESSAGE:])


def guarded_command(arguments: Sequence[str]) -> list[str]:
    """`trd-ray ARGUMENTS` that ends with this process."""
    return [sys.executable, "-m", "launch.sweep.trial_process", str(os.getpid()), *arguments]


def end_with(owner: int) -> None:
    """Be sent SIGTERM when the thread that started this process ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have ended before the call.
    if os.getppid() != owner:
        sys.exit(1)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv = ["trd-ray", *sys.argv[2:]]
    from launch.cli import main

    main()
