"""One run with one fault, from its start to its books: everything that the campaign and the tests share."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import psutil

from tests.e2e.chaos.checks import ENGINES, check_replay, check_steps, check_words, limit_s, read_books
from tests.e2e.chaos.driver import FILLER
from tests.e2e.chaos.faults import (
    GENERATE_S,
    HEARTBEAT_S,
    LEARN_S,
    PATIENCE,
    START_S,
    SYNC_S,
    Fault,
    Kind,
    Target,
)
from tests.e2e.chaos.mood import FAULT, RUN, STRUCK
from tests.e2e.processes import CONFIGS, ROOT, SMALL
from trd_ray.config_loader import load_config
from trd_ray.errors import TrdRayError
from trd_ray.run_folder import RunFolder
from trd_ray.run_state import RunState

NUM_STEPS = 5
# Of a run that nothing strikes, on a machine that others compute on too.
_PLAIN_S = 120.0 * PATIENCE
_GONE_S = 10.0 * PATIENCE
# Ray's two agents notice the death of their node only after a minute and a half.
_AGENTS = re.compile(r"ray/dashboard/agent\.py|runtime_env/agent|ray::DashboardAgent|ray::RuntimeEnvAgent")
_STOPPED_S = 8.0 * PATIENCE
_MOST_ATTEMPTS = 4


class Outcome(StrEnum):
    SURVIVED = "survived"
    """The run went on and ended by itself."""
    RESUMED = "resumed"
    """The driver was killed; resumed, it went on to the end."""
    SAID_SO = "said so, resumed"
    """The run ended with a message that says why; resumed, it went on to the end."""
    FAILED = "FAILED"


@dataclass(kw_only=True)
class Result:
    """What became of one run."""

    fault: Fault
    outcome: Outcome = Outcome.FAILED
    restarts: int = 0
    """Actors that were started anew."""
    resumes: int = 0
    seconds: float = 0.0
    lost: int = 0
    duplicated: int = 0
    orphans: int = 0
    weight_distance: float = 0.0
    """From the replay, over the length of what was learnt."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the driver."""

    code: int | None
    """None for one that did not end in time."""
    text: str
    seconds: float
    orphans: tuple[str, ...]


def rehearse(fault: Fault, folder: Path) -> Result:
    """Run until all steps are there, then check everything. Never raises for what a run does."""
    run_dir = folder / "run"
    run_dir.mkdir(parents=True)
    result = Result(fault=fault)
    start = time.monotonic()
    with _small_disk(run_dir) if fault.kind is Kind.FULL_DISK else contextlib.nullcontext():
        ended = _to_the_end(fault, folder, result)
        result.seconds = round(time.monotonic() - start, 1)
        if ended:
            try:
                _check(folder, result)
            except (TrdRayError, ValueError, OSError) as error:
                result.problems.append(f"the run folder cannot be checked: {error}")
    if result.problems:
        result.outcome = Outcome.FAILED
    return result


def _to_the_end(fault: Fault, folder: Path, result: Result) -> bool:
    """Start and resume the driver; False if it never ended well, so that there is nothing to check."""
    run_dir, texts = folder / "run", []
    for number in range(1, _MOST_ATTEMPTS + 1):
        attempt = _attempt(fault, folder, number=number)
        texts.append(attempt.text)
        result.restarts += len(re.findall(r"is replaced|started\s+anew \(", attempt.text))
        result.orphans += len(attempt.orphans)
        result.problems += [f"orphan of attempt {number}: {name}" for name in attempt.orphans]
        if attempt.code is None:
            result.problems.append(f"attempt {number} did not end within {attempt.seconds:.0f} s")
            return False
        if attempt.code == 0:
            break
        if number == _MOST_ATTEMPTS:
            result.problems.append(f"attempt {number} ended with {attempt.code}: {attempt.text[-500:]}")
            return False
        result.resumes += 1
        result.problems += _unexpected(fault, attempt, number=number)
        if number == 1:
            _tear(fault, run_dir)
        elif fault.kind is Kind.TORN_CHECKPOINT:
            _move_damaged_away(run_dir)
        (run_dir / FILLER).unlink(missing_ok=True)
    if not (folder / "struck").exists():
        result.problems.append("the fault did not strike")
    was_needed = fault.target not in ENGINES or not _struck_after_the_last_step(folder)
    result.problems += check_words(fault, "\n".join(texts), was_needed=was_needed)
    result.outcome = Outcome.SURVIVED
    if result.resumes:
        result.outcome = Outcome.RESUMED if fault.ends_driver else Outcome.SAID_SO
    return True


def _struck_after_the_last_step(folder: Path) -> bool:
    """When all was learnt and pushed: only the last checkpoint and the end were left."""
    struck = folder / "struck"
    if not struck.exists():
        return False
    struck_at = float(struck.read_text().split()[1])
    return struck_at > RunFolder(folder / "run").metrics.stat().st_mtime


def _unexpected(fault: Fault, attempt: Attempt, *, number: int) -> list[str]:
    """What is wrong with an attempt that did not end well."""
    expected: tuple[int, ...] = ()
    if number == 1:
        expected = (-signal.SIGKILL,) if fault.ends_driver else (1,) if fault.ends_run else ()
    elif fault.kind is Kind.TORN_CHECKPOINT and number == 2:
        expected = (1,)
    if attempt.code in expected:
        return []
    return [f"attempt {number} ended with {attempt.code}: {attempt.text[-800:]}"]


def _attempt(fault: Fault, folder: Path, *, number: int) -> Attempt:
    run, log = uuid.uuid4().hex, folder / f"attempt_{number}.log"
    struck = folder / "struck"
    env = os.environ | {FAULT: fault.dump(), STRUCK: str(struck), RUN: run, "COLUMNS": "400"}
    arguments = command(fault, folder / "run") + (["--resume"] if number > 1 else [])
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=env, start_new_session=True
        )
    limit = _PLAIN_S + (limit_s(fault) if not struck.exists() else 0.0)
    code = _wait(process, fault, struck, limit=limit)
    seconds = time.monotonic() - start
    if code is None:
        process.kill()
        process.wait()
    orphans = _orphans(run)
    return Attempt(code=code, text=log.read_text(), seconds=seconds, orphans=orphans)


def _wait(process: subprocess.Popen[bytes], fault: Fault, struck: Path, *, limit: float) -> int | None:
    """The exit code; None if there is none after `limit` seconds. Lets a driver that was stopped go on."""
    deadline = time.monotonic() + limit
    stops_driver = fault.kind is Kind.STOP and fault.target is Target.DRIVER
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return process.returncode
        if stops_driver and struck.exists():
            time.sleep(_STOPPED_S)
            process.send_signal(signal.SIGCONT)
            stops_driver = False
        time.sleep(0.1)
    return None


def command(fault: Fault, run_dir: Path) -> list[str]:
    ranks = fault.num_ranks
    return [
        sys.executable, "-m", "tests.e2e.chaos.driver", "train", str(CONFIGS / "trd_opd.yaml"), *SMALL,
        f"run.dir={run_dir}", f"run.num_steps={NUM_STEPS}", "run.checkpoint_every=2",
        "run.keep_checkpoints=3", "run.trace_steps=0", "run.trackers=[]", 'data.eval=""',
        f"generator.num_actors={fault.num_generators}", "generator.resources.cpus=0.25",
        "generator.resources.memory_gib=1",
        f"learner.num_ranks={ranks}", "learner.resources.cpus=0.25",
        f"pipeline.max_staleness={fault.max_staleness}",
        f"pipeline.stage_barrier={'false' if fault.max_staleness else 'true'}",
        f"timeouts.generate_s={GENERATE_S}", f"timeouts.learn_s={LEARN_S}", f"timeouts.sync_s={SYNC_S}",
        f"timeouts.start_s={START_S}", "faults.heartbeat_s=1", f"faults.heartbeat_timeout_s={HEARTBEAT_S}",
        "ray.object_store_gib=0.2", "weight_sync.verify_every=1",
    ]  # fmt: skip


def _orphans(run: str) -> tuple[str, ...]:
    """Names of the run's processes that do not end by themselves; they are killed.

    Ray's agents are waited for as long only as all others, and then killed without being counted.
    """
    deadline = time.monotonic() + _GONE_S
    while (left := [p for p in _processes(run) if not _AGENTS.search(p[1])]) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process, _ in _processes(run):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return tuple(name for _, name in left)


def _processes(run: str) -> list[tuple[psutil.Process, str]]:
    """Those that have the run's variable in their environment, and their command lines."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            if process.environ().get(RUN) == run and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process, " ".join(process.cmdline())[:120] or process.name()))
    return found


@contextmanager
def _small_disk(run_dir: Path) -> Iterator[None]:
    """A file system of its own for the run folder, with room for the run."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", str(run_dir)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(run_dir)], check=True)


def can_fill_a_disk() -> bool:
    """A small disk is a mount, which only root may make."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


def _tear(fault: Fault, run_dir: Path) -> None:
    folder = RunFolder(run_dir)
    if fault.kind is Kind.TORN_METRICS:
        with folder.metrics.open("a") as file:
            file.write('{"learner_step": 99, "loss": 0.')
    elif fault.kind is Kind.TORN_LOG:
        for written in (folder.buffer_log, folder.trajectories):
            *_, last = sorted(written.glob("step_*.parquet"))
            half = last.read_bytes()[: last.stat().st_size // 2]
            (written / f".step_{NUM_STEPS:06d}.parquet.tmp").write_bytes(half)
            checkpoint = folder.latest_checkpoint()
            if checkpoint is None or int(last.stem.removeprefix("step_")) > checkpoint.learner_step:
                last.write_bytes(half)
    elif fault.kind is Kind.TORN_CHECKPOINT:
        for path in _heavy_files(run_dir):
            os.truncate(path, path.stat().st_size // 2)


def _heavy_files(run_dir: Path) -> list[Path]:
    """Of the newest checkpoint, those that hold the learner."""
    checkpoint = RunFolder(run_dir).latest_checkpoint()
    assert checkpoint is not None, "a torn checkpoint needs one: strike later"
    return [p for p in checkpoint.path.rglob("*.pt") if "deepspeed" in p.parts]


def _move_damaged_away(run_dir: Path) -> None:
    """What the message tells people to do."""
    checkpoint = RunFolder(run_dir).latest_checkpoint()
    assert checkpoint is not None
    checkpoint.path.rename(run_dir / f"damaged_{checkpoint.path.name}")


def _check(folder: Path, result: Result) -> None:
    run = RunFolder(folder / "run")
    config = load_config(run.config)
    state = RunState.read(run.checkpoint(NUM_STEPS))
    books = read_books(run, state)
    result.lost, result.duplicated = len(books.lost), len(books.duplicated)
    result.problems += books.problems() + check_steps(run, config, state)
    problems, result.weight_distance = check_replay(run.path, folder / "replay")
    result.problems += problems
