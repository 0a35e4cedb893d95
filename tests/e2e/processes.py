"""Running the command line as its users do, and looking for what a run left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "experiment"

# Small enough for a test, large enough that a stage has a batch.
SMALL = (
    "pipeline.prompts_per_step=8",
    "data.eval_problems=8",
    "eval.num_samples=2",
    "generator.engine.kv_cache_gib=0.25",
    "teacher.engine.kv_cache_gib=0.25",
    "generator.engine.threads=1",
    "teacher.engine.threads=1",
    "learner.threads=1",
)


def command(config: str, run_dir: Path, *arguments: str, small: bool = True) -> list[str]:
    """`trd-ray train` with this interpreter."""
    return [
        sys.executable,
        "-m",
        "launch.train",
        str(CONFIGS / config),
        f"run.dir={run_dir}",
        *(SMALL if small else ()),
        *arguments,
    ]


def run(arguments: Sequence[str], *, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run to the end; the output is kept for the message of a failed assertion."""
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
    )


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[str]:
    """Start without waiting, in a process group of its own."""
    return subprocess.Popen(
        arguments, stdout=log.open("w"), stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    )


def wait_for_lines(path: Path, num: int, process: subprocess.Popen[str], *, timeout_s: float = 600) -> None:
    """Wait until a file has `num` lines while `process` lives."""
    deadline = time.monotonic() + timeout_s
    while not path.exists() or len(path.read_text().splitlines()) < num:
        assert process.poll() is None, (
            f"the run ended with {process.returncode} before {path} had {num} lines"
        )
        assert time.monotonic() < deadline, f"{path} had no {num} lines after {timeout_s} s"
        time.sleep(0.05)


def wait_until_gone(pids: set[int], *, timeout_s: float = 30) -> set[int]:
    """The processes of `pids` that still live after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        alive = {pid for pid in pids if _is_alive(pid)}
        if not alive:
            return set()
        time.sleep(0.2)
    return alive


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(process: subprocess.Popen[str]) -> set[int]:
    """The process and all that it started, directly or not."""
    return {process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))}


def process_names(process: subprocess.Popen[str]) -> list[str]:
    """Command lines of all that a process started; Ray names its actors there."""
    names = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            names.append(" ".join(child.cmdline()))
    return names
