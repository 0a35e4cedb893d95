"""One whole run of the real pipeline over simulated roles, for the modes of `benchmarks/pipeline.py`."""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.simulated import (
    Answers,
    Cluster,
    NullRecorder,
    SimulatedRoles,
    simulated_roles,
    testbed_inputs,
)
from trd_ray.activity import RoleActivity
from trd_ray.assembly import RunInputs, build_pipeline
from trd_ray.config import TrdConfig
from trd_ray.config_loader import load_config
from trd_ray.metrics import MetricsWriter, StepMetrics
from trd_ray.observer import Observer, Observers
from trd_ray.run_folder import RunFolder
from trd_ray.watched import watch_roles

_CONFIG = Path(__file__).parents[1] / "configs/experiment/trd_opd.yaml"
_NUM_PROBLEMS = 20_000


class Runner(Protocol):
    """`asyncio.run` or `run_virtual`."""

    def __call__(self, main: Coroutine[Any, Any, SimulatedRoles], /) -> SimulatedRoles: ...


@dataclass
class StepWatch:
    """An observer that calls `each` after every step, with the trajectories consumed so far."""

    each: Callable[[int], None] = lambda num: None
    num: int = 0

    def on_stage(self, stage: str, done: int, total: int) -> None:
        pass

    def on_step(self, metrics: StepMetrics) -> None:
        self.num += metrics.num_consumed
        self.each(self.num)

    def on_eval(self, report: object) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the modes share."""

    repeats: int
    recorder: str
    """`real` writes metrics, trajectories and the buffer's log as a run does; `null` only metrics."""
    tokens: int
    """Of each rollout and each refinement."""


def make_config(folder: Path, *, tokens: int, num_steps: int, per_step: int, staleness: int) -> TrdConfig:
    """The testbed's TRD configuration with room for `tokens`, without evaluation and barrier."""
    room = 2 * tokens + 512
    return load_config(
        str(_CONFIG),
        [
            f"run.dir={folder}",
            f"run.num_steps={num_steps}",
            "run.trackers=[]",
            "data.eval=''",
            f"generator.sampling.max_tokens={tokens}",
            f"teacher.sampling.max_tokens={tokens}",
            f"eval.sampling.max_tokens={tokens}",
            f"generator.engine.max_model_len={room}",
            f"teacher.engine.max_model_len={room + tokens}",
            f"learner.micro_batch_tokens={max(8192, room)}",
            f"pipeline.prompts_per_step={per_step}",
            f"pipeline.max_staleness={staleness}",
            "pipeline.stage_barrier=false",
        ],
    )


async def run_once(
    config: TrdConfig,
    inputs: RunInputs,
    cluster: Cluster,
    *,
    recorder: str,
    watch: Observer,
) -> SimulatedRoles:
    """One whole run. Gives what its roles have counted."""
    folder = RunFolder.create(config.run.dir)
    answers = Answers(inputs, num_tokens=config.generator.sampling.max_tokens)
    activity = RoleActivity()
    async with simulated_roles(config, answers, cluster, activity) as simulated:
        with MetricsWriter(folder) as writer:
            pipeline = build_pipeline(
                config,
                roles=watch_roles(simulated.roles, activity, in_process=False, has_teacher=True),
                inputs=inputs,
                folder=folder,
                observer=Observers([writer, watch]),
                activity=activity,
            )
            if recorder == "null":
                pipeline._recorder = NullRecorder()  # type: ignore[assignment]
            result = await pipeline.run()
    assert result.learner_step == config.run.num_steps
    return simulated


def simulated_run(
    runner: Runner,
    options: Options,
    cluster: Cluster,
    *,
    num_steps: int,
    per_step: int,
    staleness: int,
    watch: Observer,
) -> SimulatedRoles:
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="trd_bench_") as folder:
        config = make_config(
            Path(folder) / "run",
            tokens=options.tokens,
            num_steps=num_steps,
            per_step=per_step,
            staleness=staleness,
        )
        inputs = testbed_inputs(config, num_problems=_NUM_PROBLEMS)
        return runner(run_once(config, inputs, cluster, recorder=options.recorder, watch=watch))


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
