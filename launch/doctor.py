"""`trd-ray doctor`: do engine, teacher and learner agree on the same weights and tokens?

Starts the real actors with the student as its own teacher, takes a few rollouts, and measures.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from launch.consoles import console
from launch.preflight import check_run
from launch.signals import Signals
from launch.wiring_ray import RayRoles, ray_run
from trd_ray.activity import RoleActivity
from trd_ray.agreement import TOLERANCES, LogprobAgreement, compare_logprobs
from trd_ray.assembly import RunInputs
from trd_ray.batching import make_training_batch
from trd_ray.choices import Divergence, DType, ScoreMethod, TeacherWeights
from trd_ray.config import MethodConfig, TrdConfig
from trd_ray.errors import DataError, ModelError, TrdRayError
from trd_ray.interfaces import Teacher
from trd_ray.run_folder import RunFolder
from trd_ray.types import (
    Completion,
    Prompt,
    SyncReport,
    TeacherContext,
    TrainingBatch,
    TrainingSample,
    TrajectorySource,
)

_NUM_PROBLEMS = 8
# Large enough that a step changes weights in bfloat16 too; nothing of it is kept.
_PUSHED_LEARNING_RATE = 1e-2
_PACKAGES = ("torch", "transformers", "vllm", "deepspeed", "ray")
# Their published builds do not match a CPU build of torch, and then transformers cannot be imported.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
# KL of two distributions that differ by rounding is of second order in the difference.
_ZERO_DIVERGENCE = {DType.FLOAT32: 1e-6, DType.BFLOAT16: 1e-3}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the table."""

    check: str
    passed: bool
    measured: str
    remedy: str


def examine(config: TrdConfig) -> int:
    """Run all checks and print them. Returns the exit code: 0 if all passed, 1 if not."""
    findings = list(_installed())
    try:
        inputs = check_run(self_teaching(config), no_ray=False)
        # The configured teacher must fit too; the comparisons below use the student alone.
        check_run(config, no_ray=False)
    except (ModelError, DataError) as error:
        first, *_ = str(error).splitlines()
        findings.append(Finding(check="models and data", passed=False, measured=first, remedy=str(error)))
    else:
        findings.append(_passed("tokenizers", "student and teacher give each token the same id"))
        num_tokens = len(_prompt(inputs, 0).token_ids)
        findings.append(_passed("chat template", f"{num_tokens} tokens for the first prompt"))
        findings += _agreements(self_teaching(config), inputs)
    console.print(_table(findings))
    return 0 if all(finding.passed for finding in findings) else 1


def _agreements(config: TrdConfig, inputs: RunInputs) -> list[Finding]:
    """Findings of the real actors; one that fails to start or to agree is a finding too."""
    try:
        return asyncio.run(_compare(config, inputs))
    except TrdRayError as error:
        first, *rest = str(error).splitlines()
        return [
            Finding(
                check="actors",
                passed=False,
                measured=f"{type(error).__name__}: {first}",
                remedy="\n".join(rest),
            )
        ]


def self_teaching(config: TrdConfig) -> TrdConfig:
    """The configuration with the student as its own teacher, along its own rollouts."""
    method = MethodConfig(
        trajectory=TrajectorySource.ROLLOUT,
        teacher_weights=TeacherWeights.INITIAL,
        teacher_context=TeacherContext.PROMPT,
        divergence=Divergence.FORWARD_KL,
    )
    optimizer = dataclasses.replace(
        config.learner.optimizer, learning_rate=_PUSHED_LEARNING_RATE, warmup_ratio=0.0
    )
    return dataclasses.replace(
        config,
        method=method,
        teacher=dataclasses.replace(config.teacher, score=ScoreMethod.HIDDEN),
        learner=dataclasses.replace(config.learner, optimizer=optimizer),
        weight_sync=dataclasses.replace(config.weight_sync, verify_every=1),
    )


def _installed() -> Iterator[Finding]:
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    yield Finding(
        check="packages", passed=not missing, measured=versions,
        remedy=f"install {', '.join(missing)}: run launch/setup.sh" if missing else "",
    )  # fmt: skip
    unwanted = [name for name in _UNWANTED if importlib.util.find_spec(name) is not None]
    broken = [name for name in unwanted if not _imports(name)]
    yield Finding(
        check="mismatched packages", passed=not broken, measured=", ".join(unwanted) or "none installed",
        remedy=f"pip uninstall {' '.join(broken)}: built for another torch" if broken else "",
    )  # fmt: skip


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _version(name: str) -> str:
    for distribution in (name, f"{name}-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


async def _compare(config: TrdConfig, inputs: RunInputs) -> list[Finding]:
    prompts = [_prompt(inputs, index) for index in range(_NUM_PROBLEMS)]
    # Nothing is recorded; a learner that dies is started anew without a past.
    with Signals(), tempfile.TemporaryDirectory() as folder:
        async with ray_run(config, inputs, RunFolder(folder), RoleActivity()) as running:
            return await _measure(config, running, prompts)


async def _measure(config: TrdConfig, running: RayRoles, prompts: list[Prompt]) -> list[Finding]:
    roles, learner = running.roles, running.groups.learner
    assert learner is not None  # a run has one
    rollouts = await asyncio.gather(
        *(roles.generator.generate(prompt, config.generator.sampling) for prompt in prompts)
    )
    probes = [
        (rollout.logprobs, await learner.probe_logprobs(prompt.token_ids, rollout.token_ids))
        for prompt, rollout in zip(prompts, rollouts, strict=True)
    ]
    before = await roles.weight_sync.push(0)
    step = await roles.learner.learn(await _self_taught(config, roles.teacher, prompts, rollouts))
    after = await roles.weight_sync.push(1)
    return [
        _agreement(compare_logprobs(probes), config),
        _zero(step.loss, rollouts, config),
        _pushed(before, after),
    ]


async def _self_taught(
    config: TrdConfig, teacher: Teacher, prompts: list[Prompt], rollouts: list[Completion]
) -> TrainingBatch:
    """One optimizer step's batch in which the student's own weights are the teacher's."""
    hidden = await asyncio.gather(
        *(
            teacher.score(prompt.token_ids, rollout.token_ids)
            for prompt, rollout in zip(prompts, rollouts, strict=True)
        )
    )
    samples = [
        TrainingSample(
            prompt_ids=prompt.token_ids,
            response_ids=rollout.token_ids,
            target=states,
        )
        for prompt, rollout, states in zip(prompts, rollouts, hidden, strict=True)
    ]
    return make_training_batch(
        samples,
        learner_step=1,
        num_ranks=config.learner.num_ranks,
        micro_batch_tokens=config.learner.micro_batch_tokens,
    )


def _agreement(agreement: LogprobAgreement, config: TrdConfig) -> Finding:
    tolerance = TOLERANCES[_coarsest(config)]
    return Finding(
        check="vLLM against learner log-probabilities",
        passed=agreement.within(tolerance),
        measured=f"{agreement.num_tokens} tokens: mean {agreement.mean:.2g} (limit {tolerance.mean:g}), "
        f"largest {agreement.largest:.2g} (limit {tolerance.largest:g}) nats",
        remedy="rollouts are not what the learner takes them for: compare dtypes, and whether vLLM supports "
        "this model",
    )


def _pushed(before: SyncReport, after: SyncReport) -> Finding:
    """Both pushes were compared by checksum, or they would have raised; the second must be another."""
    return Finding(
        check="weight sync",
        passed=before.checksum != after.checksum,
        measured=f"{after.num_parameters:,} weights in {after.sync_s:.2f} s; generators hold what was sent, "
        f"checksum {before.checksum[:8]} before an optimizer step and {after.checksum[:8]} after it",
        remedy="the optimizer step changed no weight that the generators can hold: compare dtypes",
    )


def _zero(loss: float, rollouts: list[Completion], config: TrdConfig) -> Finding:
    limit = _ZERO_DIVERGENCE[_coarsest(config)]
    num_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    return Finding(
        check="student = teacher gives divergence 0",
        passed=abs(loss) <= limit,
        measured=f"{loss:.2g} nats a token over {num_tokens} tokens (limit {limit:g})",
        remedy="teacher and learner disagree on the same weights: compare teacher.score_dtype, "
        "teacher.hidden_dtype and learner.dtype",
    )


def _coarsest(config: TrdConfig) -> DType:
    """The format with the fewest digits among all that take part."""
    teacher = config.teacher
    used = (config.generator.engine.dtype, config.learner.dtype, teacher.score_dtype, teacher.hidden_dtype)
    return DType.BFLOAT16 if DType.BFLOAT16 in used else DType.FLOAT32


def _prompt(inputs: RunInputs, index: int) -> Prompt:
    """The `index`-th training problem from where the stream stands, which does not move."""
    before = inputs.stream.state()
    problem, epoch = inputs.stream.take(index + 1)[index]
    inputs.stream.restore(before)
    return Prompt(
        problem=problem,
        epoch=epoch,
        sample_index=0,
        token_ids=inputs.prompts.student(problem),
        seed=index,
    )


def _passed(check: str, measured: str) -> Finding:
    return Finding(check=check, passed=True, measured=measured, remedy="")


def _table(findings: list[Finding]) -> Table:
    table = Table("check", "result", "measured", "what to do")
    for finding in findings:
        result = "[green]passed[/]" if finding.passed else "[red]failed[/]"
        remedy = "" if finding.passed else finding.remedy
        table.add_row(finding.check, result, Text(finding.measured), Text(remedy))
    return table
