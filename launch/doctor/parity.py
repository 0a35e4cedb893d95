"""The checks that need the real actors: the same weights and tokens through every program.

The student is its own teacher (`self_teaching.py`). Checks run in the order of `PARITY_CHECKS`, since an
optimizer step changes the weights; one that fails is a finding, and the next goes on.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ray.exceptions import RayError

from actors.learner_group import RayLearner
from launch.doctor.finding import Finding, failed_by, found, not_applicable
from launch.doctor.parity_names import (
    CHECKPOINT,
    DECODING,
    FUSED,
    LEARNER,
    PADDING_IDS,
    PUSH,
    ZERO,
    parity_not_made,
)
from launch.doctor.self_teaching import coarsest
from launch.signals import Signals
from launch.wiring_ray import ray_run
from trd_ray.activity import RoleActivity
from trd_ray.agreement import TOLERANCES, compare_logprobs
from trd_ray.assembly import Roles, RunInputs
from trd_ray.batching import make_training_batch
from trd_ray.choices import DType
from trd_ray.config import TrdConfig
from trd_ray.errors import TrdRayError
from trd_ray.model_files import model_facts
from trd_ray.run_folder import RunFolder
from trd_ray.target_agreement import compare_targets
from trd_ray.types import (
    Completion,
    FloatArray,
    LearnerStep,
    Prompt,
    TopKTargets,
    TrainingBatch,
    TrainingSample,
)

NUM_PROBLEMS = 8
# KL of two distributions that differ by rounding is of second order in the difference.
_ZERO_DIVERGENCE = {DType.FLOAT32: 1e-6, DType.BFLOAT16: 1e-3}
# vLLM sends top-k log-probabilities in float16: off by up to 2**-11 of each.
_ZERO_TOP_K = 1e-4
_CHECKPOINT_BYTES = 4 * 4
"""A parameter in a checkpoint: float32 weights, two moments, and the student's own copy, at most."""


@dataclass(kw_only=True)
class Probe:
    """A running group of actors, and what was already asked of it."""

    config: TrdConfig
    """Of `self_teaching`."""
    roles: Roles
    learner: RayLearner
    prompts: list[Prompt]
    rollouts: list[Completion]
    vocab_size: int
    """Tokens of the tokenizer."""
    num_parameters: int
    folder: Path
    """For a checkpoint, on the run's file system."""
    batch: TrainingBatch | None = None
    step: LearnerStep | None = None

    async def first_step(self) -> LearnerStep:
        """The one optimizer step on that batch; its loss is the divergence of the student to itself."""
        if self.step is None:
            self.step = await self.roles.learner.learn(await self.training_batch())
        return self.step

    @property
    def version(self) -> int:
        """The learner's."""
        return 0 if self.step is None else self.step.policy_version

    async def training_batch(self) -> TrainingBatch:
        """One optimizer step in which the student's own weights are the teacher's."""
        if self.batch is None:
            scored = await asyncio.gather(
                *(self.roles.teacher.score(p.token_ids, r.token_ids) for p, r in self.pairs)
            )
            samples = [
                TrainingSample(prompt_ids=p.token_ids, response_ids=r.token_ids, target=target)
                for (p, r), target in zip(self.pairs, scored, strict=True)
            ]
            self.batch = make_training_batch(
                samples,
                learner_step=1,
                num_ranks=self.config.learner.num_ranks,
                micro_batch_tokens=self.config.learner.micro_batch_tokens,
            )
        return self.batch

    @property
    def pairs(self) -> list[tuple[Prompt, Completion]]:
        return list(zip(self.prompts, self.rollouts, strict=True))

    async def learner_logprobs(self) -> list[FloatArray]:
        # One after the other: each is a collective call of all ranks.
        return [await self.learner.probe_logprobs(p.token_ids, r.token_ids) for p, r in self.pairs]


async def check_learner(probe: Probe) -> Finding:
    """vLLM's log-probabilities while it wrote against those of the module that is trained."""
    probes = await probe.learner_logprobs()
    return _logprob_finding(
        probe, LEARNER, list(zip([r.logprobs for r in probe.rollouts], probes, strict=True)),
        "rollouts are not what the learner takes them for: compare generator.engine.dtype and "
        "learner.dtype, and whether vLLM supports this model",
    )  # fmt: skip


async def check_decoding(probe: Probe) -> Finding:
    """The generator's own two ways to one number: token by token, and in one pass over all."""
    again = await asyncio.gather(
        *(probe.roles.generator.token_logprobs(p.token_ids, r.token_ids) for p, r in probe.pairs)
    )
    return _logprob_finding(
        probe, DECODING, list(zip([r.logprobs for r in probe.rollouts], again, strict=True)),
        "the engine's caches or kernels are wrong for this model: try generator.engine.enforce_eager=true, "
        "generator.engine.prefix_caching=false",
    )  # fmt: skip


async def check_padding_ids(probe: Probe) -> Finding:
    """What was sampled are tokens of the tokenizer."""
    largest = max(int(r.token_ids.max()) for r in probe.rollouts)
    return found(
        PADDING_IDS, largest < probe.vocab_size,
        f"largest id {largest:,}, tokenizer {probe.vocab_size:,} tokens",
        "the model gives weight to padding rows of its head: it is not the model of this tokenizer",
    )  # fmt: skip


async def check_fused(probe: Probe) -> Finding:
    """What comes with the teacher's own tokens against a pass over them afterwards."""
    if not probe.config.teacher_engine:
        return not_applicable(FUSED, "the method gives the teachers no engine")
    teacher = probe.roles.teacher
    top_k = probe.config.method.num_targets
    written = await asyncio.gather(
        *(
            teacher.generate(p.token_ids, probe.config.teacher.sampling, p.seed, top_k=top_k)
            for p in probe.prompts
        )
    )
    asked = [(p.token_ids, each.completion.token_ids) for p, each in zip(probe.prompts, written, strict=True)]
    fused = [each.targets for each in written]
    if not top_k:
        passes = await asyncio.gather(*(teacher.token_logprobs(*each) for each in asked))
        pairs = [(one.token_logprobs, other) for one, other in zip(fused, passes, strict=True) if one]
        return _logprob_finding(probe, FUSED, pairs, _FUSED_REMEDY)
    scored = await asyncio.gather(*(teacher.score(*each) for each in asked))
    apart = [
        compare_targets(one, other)
        for one, other in zip(fused, scored, strict=True)
        if one is not None and isinstance(other, TopKTargets)
    ]
    largest = max(
        (max(d.token_logprob, d.topk_logprob, d.shared_logprob, d.unshared_margin) for d in apart),
        default=float("inf"),
    )
    limit = TOLERANCES[coarsest(probe.config)].largest
    num_tokens = sum(len(tokens) for _, tokens in asked)
    # float16 rounds the log-probability of an unlikely token by more than float32 arithmetic does.
    limit = max(limit, 2.0**-6)
    return found(
        FUSED, largest <= limit,
        f"{num_tokens} tokens, top {top_k}: largest difference {largest:.2g} nats (limit {limit:g})",
        _FUSED_REMEDY,
    )  # fmt: skip


async def check_zero(probe: Probe) -> Finding:
    """The loss of a student that is its own teacher."""
    step = await probe.first_step()
    limit = _ZERO_DIVERGENCE[coarsest(probe.config)]
    if probe.config.teacher.score.by_engine:
        limit = max(limit, _ZERO_TOP_K)
    return found(
        ZERO, abs(step.loss) <= limit,
        f"{step.loss:.2g} nats a token over {step.num_loss_tokens} tokens (limit {limit:g})",
        "teacher and learner disagree on the same weights: compare teacher.score_dtype, "
        "teacher.hidden_dtype, teacher.engine.dtype and learner.dtype",
    )  # fmt: skip


async def check_push(probe: Probe) -> Finding:
    """Weights before and after a step reach the engines; both are read back, or a push would raise."""
    before = await probe.roles.weight_sync.push(0)
    await probe.first_step()
    after = await probe.roles.weight_sync.push(1)
    return found(
        PUSH, before.checksum != after.checksum,
        f"{after.num_parameters:,} weights in {after.sync_s:.2f} s; generators hold what was sent, "
        f"checksum {before.checksum[:8]} before an optimizer step and {after.checksum[:8]} after it",
        "the optimizer step changed no weight that the generators can hold: compare dtypes",
    )  # fmt: skip


async def check_checkpoint(probe: Probe) -> Finding:
    """Saved, changed by a step, loaded: the same log-probabilities, and the same loss of that step."""
    free, needed = shutil.disk_usage(probe.folder).free, probe.num_parameters * _CHECKPOINT_BYTES
    if free < needed:
        return found(
            CHECKPOINT, False, f"{free:,} bytes free in {probe.folder}, a checkpoint takes {needed:,}",
            "free some space, or name a run.dir elsewhere",
        )  # fmt: skip
    batch = await probe.training_batch()
    with tempfile.TemporaryDirectory(prefix=".doctor_", dir=probe.folder) as folder:
        checkpoint = Path(folder) / "checkpoint"
        await probe.learner.save(checkpoint)
        saved = await probe.learner_logprobs()
        next_step = replace(batch, learner_step=probe.version + 1)
        first = await probe.learner.learn(next_step)
        changed = await probe.learner_logprobs()
        version = await probe.learner.load(checkpoint)
        loaded = await probe.learner_logprobs()
        second = await probe.learner.learn(next_step)
    same = version == probe.version and all(map(np.array_equal, saved, loaded))
    moved = any(not np.array_equal(a, b) for a, b in zip(saved, changed, strict=True))
    apart = abs(first.loss - second.loss)
    return found(
        CHECKPOINT, same and moved and apart <= 1e-6 * max(1.0, abs(first.loss)),
        f"{'the same' if same else 'other'} weights at policy version {version}; the next step changes "
        f"{'them' if moved else 'nothing'}, and its losses before and after differ by {apart:.2g}",
        "a run that is resumed would not go on where it was: do not rely on --resume here",
    )  # fmt: skip


_FUSED_REMEDY = "use teacher.score=prefill or hidden: what comes with the tokens is not what a pass gives"

Check = Callable[[Probe], Awaitable[Finding]]
PARITY_CHECKS: tuple[tuple[str, Check], ...] = (
    (LEARNER, check_learner),
    (DECODING, check_decoding),
    (PADDING_IDS, check_padding_ids),
    (FUSED, check_fused),
    (PUSH, check_push),
    (ZERO, check_zero),
    (CHECKPOINT, check_checkpoint),
)
"""In the order in which they are made."""


def parity_findings(config: TrdConfig, inputs: RunInputs) -> list[Finding]:
    """Start the actors, make every check, end the actors. `config` is of `self_teaching`."""
    try:
        return asyncio.run(_examine(config, inputs))
    except (TrdRayError, RayError) as error:
        return [failed_by("actors", error), *parity_not_made("the actors did not start")]


async def _examine(config: TrdConfig, inputs: RunInputs) -> list[Finding]:
    prompts = [_prompt(inputs, index) for index in range(NUM_PROBLEMS)]
    # The run folder is not made here; ranks must see the place where it will be.
    place = _existing(Path(config.run.dir))
    config = replace(config, run=replace(config.run, dir=str(place)))
    # Nothing is recorded; a learner that dies is started anew without a past.
    with Signals(), tempfile.TemporaryDirectory() as folder:
        async with ray_run(config, inputs, RunFolder(folder), RoleActivity()) as running:
            learner = running.groups.learner
            assert learner is not None  # a run has one
            generate = running.roles.generator.generate
            rollouts = await asyncio.gather(*(generate(p, config.generator.sampling) for p in prompts))
            facts = model_facts(inputs.student_path)
            probe = Probe(
                config=config,
                roles=running.roles,
                learner=learner,
                prompts=prompts,
                rollouts=list(rollouts),
                vocab_size=max(inputs.tokenizer.get_vocab().values()) + 1,
                num_parameters=facts.num_parameters,
                folder=place,
            )
            return await make_checks(probe)


async def make_checks(probe: Probe, checks: tuple[tuple[str, Check], ...] = PARITY_CHECKS) -> list[Finding]:
    """One finding a check, whatever the others do."""
    findings = []
    for name, check in checks:
        try:
            findings.append(await check(probe))
        except (TrdRayError, RayError, ValueError, RuntimeError, OSError) as error:
            findings.append(failed_by(name, error))
    return findings


def _logprob_finding(
    probe: Probe, check: str, pairs: list[tuple[FloatArray, FloatArray]], remedy: str
) -> Finding:
    agreement = compare_logprobs(pairs)
    tolerance = TOLERANCES[coarsest(probe.config)]
    return found(
        check, agreement.within(tolerance),
        f"{agreement.num_tokens} tokens: mean {agreement.mean:.2g} (limit {tolerance.mean:g}), "
        f"largest {agreement.largest:.2g} (limit {tolerance.largest:g}) nats",
        remedy,
    )  # fmt: skip


def _existing(path: Path) -> Path:
    """The nearest folder above `path` that is there."""
    return next(folder for folder in path.expanduser().absolute().parents if folder.is_dir())


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
