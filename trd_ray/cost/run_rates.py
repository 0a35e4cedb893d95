"""Rates out of a run folder: what a run's own records say of each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.cost.devices import STAGE_ROLE, stage_devices
from trd_ray.cost.rates import Kind, Rates
from trd_ray.cost.workload import Lengths, step_work
from trd_ray.errors import DataError, describe
from trd_ray.json_lines import read_lines
from trd_ray.run_folder import RunFolder
from trd_ray.stage_clock import Stage
from trd_ray.types import TeacherContext

if TYPE_CHECKING:
    from trd_ray.types import Trajectory

Row = Mapping[str, Any]
"""One object of metrics.jsonl."""
_WARM_UP_STEPS = 2
_FEWEST_STEPS = 3


def rates_of_run(folder: Path) -> Rates:
    """Medians over the steps of a run, without the first two.

    With a stage barrier a stage's seconds are its own. Without, they are those in which the role's actors had
    a call outstanding, so that a role that is often short of work looks slower than it is.

    Raises `DataError` if the folder holds no run of three steps or more, `ConfigError` for its config.yaml.
    """
    run = RunFolder(folder)
    rows = [json.loads(line) for line in read_lines(run.metrics)]
    if len(rows) < _FEWEST_STEPS or not run.config.is_file():
        raise DataError(
            describe(
                "no rates can be taken from this folder", where=f"--rates {folder}",
                got=f"{len(rows)} rows in metrics.jsonl, {'a' if run.config.is_file() else 'no'} config.yaml",
                expected=f"a run folder with {_FEWEST_STEPS} steps or more",
                remedy="give the run.dir of a finished run",
            )
        )  # fmt: skip
    config = load_config(run.config)
    rows = rows[_WARM_UP_STEPS:]
    lengths = _lengths(config, run, rows)
    return Rates(
        name=str(folder),
        kind=Kind.MEASURED,
        source=f"{len(rows)} steps of {folder}",
        device=config.learner.device,
        dtype=config.learner.dtype,
        tokens_per_s=_tokens_per_s(config, lengths, rows),
        sync_s=median(row["sync_s"] for row in rows),
        other_s=median(row["other_s"] for row in rows),
        lengths=lengths,
    )


def _tokens_per_s(config: TrdConfig, lengths: Lengths, rows: Sequence[Row]) -> dict[Stage, float]:
    """Of one device. A stage without tokens or seconds has no rate."""
    devices = stage_devices(config)
    # Steps differ in how many trajectories they hold; the means are over those that a step is made for.
    scale = sum(row["num_trajectories"] for row in rows) / len(rows) / config.pipeline.trajectories_per_step
    rates = {}
    for stage, work in step_work(config, lengths).items():
        seconds = median(_stage_s(row, stage, barrier=config.pipeline.stage_barrier) for row in rows)
        if work.counted and seconds > 0:
            rates[stage] = work.counted * scale / seconds / devices[stage]
    return rates


def _stage_s(row: Row, stage: Stage, *, barrier: bool) -> float:
    """Seconds of the stage in one step."""
    share = float(row[f"{stage}_s"])
    role = STAGE_ROLE[stage]
    busy = row.get(f"{role}_busy_s")
    if barrier or busy is None:
        return share
    # A role's stages run at once; each has its part by their shares.
    both = sum(float(row[f"{each}_s"]) for each, of in STAGE_ROLE.items() if of is role)
    return float(busy) * share / both if both else 0.0


def _lengths(config: TrdConfig, run: RunFolder, rows: Sequence[Row]) -> Lengths:
    """Means of what was written, from metrics.jsonl; of what was read, from the log of the buffer."""
    num = sum(row["num_trajectories"] for row in rows)
    consumed = sum(row["num_consumed"] for row in rows)
    refinement = sum(row["num_refined_tokens"] for row in rows) / num
    logged = _logged(config, run, rows)
    return Lengths(
        prompt=_mean([len(t.prompt.token_ids) for t in logged]),
        rollout=sum(row["num_rollout_tokens"] for row in rows) / num,
        teacher_prompt=_mean([len(t.refinement.prompt.token_ids) for t in logged if t.refinement]),
        refinement=refinement,
        trajectory=sum(row["num_loss_tokens"] for row in rows) / consumed if consumed else 0.0,
        context=_context(config, logged),
        source=f"means of {len(rows)} steps of {run.path}"
        + ("" if logged else "; prompts are not counted, since it has no log of the buffer"),
    )


def _context(config: TrdConfig, logged: Sequence[Trajectory]) -> float:
    if not config.method.scores:
        return 0.0
    if config.method.teacher_context is TeacherContext.PROMPT:
        return _mean([len(t.prompt.token_ids) for t in logged])
    return _mean([len(t.teacher_context_ids) for t in logged])


def _logged(config: TrdConfig, run: RunFolder, rows: Sequence[Row]) -> tuple[Trajectory, ...]:
    """The records of the last step that has some."""
    from trd_ray.buffer_log import run_log  # pyarrow is slow to load

    if not config.pipeline.log_targets:
        return ()
    log = run_log(config.pipeline, run)
    wanted = {row["learner_step"] for row in rows}
    steps = [step for step in log.steps() if step in wanted]
    return log.read_step(max(steps)) if steps else ()


def _mean(numbers: Sequence[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0
