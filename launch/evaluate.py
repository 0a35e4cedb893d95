"""`trd-ray eval`: the student of a configuration on its held-out problems."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from launch.consoles import console
from launch.exits import started
from launch.preflight import check_run
from launch.progress import Progress
from launch.signals import Signals
from trd_ray.assembly import RunInputs, build_evaluator
from trd_ray.config import TrdConfig
from trd_ray.errors import ConfigError, describe
from trd_ray.evaluation import EvalReport
from trd_ray.interfaces import Generator


def evaluate(config: TrdConfig, *, no_ray: bool, as_json: bool) -> None:
    """Print avg@k and pass@k with 95% intervals. Raises what `check_run` raises."""
    inputs = check_run(config, no_ray=no_ray)
    if not inputs.eval_problems:
        raise ConfigError(
            describe(
                "there is nothing to evaluate on",
                where="data.eval",
                got="an empty value",
                expected="a data file, or testbed:held_out",
                remedy="name the held-out data in data.eval",
            )
        )
    report = started(lambda: asyncio.run(_evaluate(config, inputs, no_ray=no_ray)))
    if as_json:
        print(json.dumps(report.to_json()))


async def _evaluate(config: TrdConfig, inputs: RunInputs, *, no_ray: bool) -> EvalReport:
    plain = no_ray or config.ray.actor_logs
    with Progress(0, console=console, plain=plain) as progress, Signals():
        async with _generators(config, inputs, no_ray=no_ray) as generator:
            evaluator = build_evaluator(config, generator=generator, inputs=inputs, observer=progress)
            assert evaluator is not None  # there are problems
            report = await evaluator.evaluate(learner_step=0)
        progress.on_eval(report)
    return report


def _generators(
    config: TrdConfig, inputs: RunInputs, *, no_ray: bool
) -> AbstractAsyncContextManager[Generator]:
    if no_ray:
        return _local_generator(config, inputs)
    from launch.wiring_ray import ray_generators

    return ray_generators(config, inputs)


@asynccontextmanager
async def _local_generator(config: TrdConfig, inputs: RunInputs) -> AsyncIterator[Generator]:
    from launch.wiring_local import load_generator
    from trd_ray.local.engine import LocalGenerator
    from trd_ray.models import load_student, torch_dtype

    model = load_student(inputs.student_path, torch_dtype(config.generator.engine.dtype))
    yield LocalGenerator(load_generator(config, inputs, model))
