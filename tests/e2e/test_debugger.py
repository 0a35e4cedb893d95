"""A breakpoint in a run of one process, in a terminal: what is typed arrives, no live line is in the way."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.processes import CONFIGS, ROOT

# As a user's own `breakpoint()` in the middle of the pipeline.
WITH_BREAKPOINT = """
import sys
import launch.cli
from trd_ray.pipeline import Pipeline

finish_step = Pipeline._finish_step

async def stopped(self, *args, **kwargs):
    breakpoint()
    return await finish_step(self, *args, **kwargs)

Pipeline._finish_step = stopped
launch.cli.main()
"""


class Terminal:
    """A program that believes a person sits before it."""

    def __init__(self, arguments: list[str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "160"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def read_until(self, text: str, *, after: int = 0, timeout_s: float = 300) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.seen[after:]:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.seen}"
            if select.select([self._master], [], [], 1.0)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # it has ended
                    assert text in self.seen[after:], self.seen
                    return

    def type(self, line: str) -> int:
        """Returns where the answer begins."""
        begin = len(self.seen)
        os.write(self._master, f"{line}\n".encode())
        return begin

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._master)


def test_a_breakpoint_works_in_a_terminal(tmp_path: Path):
    terminal = Terminal(
        [
            sys.executable, "-c", WITH_BREAKPOINT, "train", str(CONFIGS / "trd_opd.yaml"),
            f"run.dir={tmp_path / 'run'}", "run.num_steps=1", "pipeline.prompts_per_step=2", 'data.eval=""',
            "--no-ray",
        ]
    )  # fmt: skip
    try:
        terminal.read_until("(Pdb) ")
        begin = terminal.type("p type(self).__name__, 6 * 7")
        terminal.read_until("(Pdb) ", after=begin + 40)
        assert "('Pipeline', 42)" in terminal.seen
        terminal.type("continue")
        terminal.read_until("run folder")
        terminal.read_until("report.html")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.close()
    assert "step 1/1" in terminal.seen  # the plain line of a step
    assert "\x1b[?25l" not in terminal.seen  # a live display hides the cursor
