"""The run: written once against `interfaces.py`, wired over Ray or in one process.

    problems --> prompts --> [generator] --> rollout --> [teacher] --> refinement --> judge
                     ^                                                                  |
                     |                                                     [teacher] <--+
                     |                                                         | hidden states
    [generator] <-- [weight sync] <-- [learner] <-- batch <-- [buffer] <-- trajectory

One step: `trajectories_per_step` prompts go in; each comes out of the buffer exactly once, consumed
or rejected; the learner makes one optimizer step; the new weights are pushed to every generator.
`prompts_in = consumed + rejected + pending` is checked at each step.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trd_ray.config import TrdConfig
from trd_ray.data import ProblemStream
from trd_ray.errors import RunFailedError, describe
from trd_ray.evaluator import Evaluator
from trd_ray.interfaces import Buffer, Learner, WeightSync
from trd_ray.metrics import step_metrics
from trd_ray.observer import Observer
from trd_ray.outcomes import Outcome
from trd_ray.production import Producer
from trd_ray.recorder import Recorder
from trd_ray.refine_gate import REFUSED_BY_DESIGN
from trd_ray.run_state import RunState
from trd_ray.seeds import derive_seed
from trd_ray.stage_clock import Stage, StageClock
from trd_ray.staleness import check_staleness
from trd_ray.step_batch import step_batch
from trd_ray.step_stages import StepStages
from trd_ray.types import Prompt, Trajectory

log = logging.getLogger(__name__)

# Problems are not endless, and a gate that refuses so many is a mistake.
_MOST_ROUNDS = 8

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

    learner_step: int
    interrupted: bool


class Pipeline:
    """Owns the loop of a run and its end.

    Consumes: problems. Produces: optimizer steps, pushed weights, the run folder. Waits for: the
    producers' trajectories, the learner, the push. Unblocked by: their answers, or `request_stop`.
    """

    def __init__(
        self,
        config: TrdConfig,
        *,
        producer: Producer,
        learner: Learner,
        weight_sync: WeightSync,
        stream: ProblemStream,
        evaluator: Evaluator | None,
        recorder: Recorder,
        observer: Observer,
    ) -> None:
        self._config = config
        self._producer = producer
        self._buffer: Buffer = producer.buffer
        self._learner = learner
        self._weight_sync = weight_sync
        self._stream = stream
        self._evaluator = evaluator
        self._recorder = recorder
        self._observer = observer
        self._state = RunState.initial(stream.state())
        self._clock = StageClock()
        self._stop = asyncio.Event()
        self._evaluation_was_cut = False

    def request_stop(self) -> None:
        """End the run after the step in hand (at once, if it is still making trajectories)."""
        self._stop.set()

    async def run(self, *, resume_from: Path | None = None, evaluated: Collection[int] = ()) -> RunResult:
        """All steps that are left; a checkpoint at the end, also when stopped.

        Args:
            resume_from: a checkpoint folder; None begins at step 0.
            evaluated: steps whose evaluation is on record already.

        Raises `RunFailedError` and whatever a role raises; what is completed stays on disk.
        """
        if resume_from is not None:
            await self._restore(resume_from)
        await self._weight_sync.push(self._state.learner_step)
        if self._evaluation_is_due() and self._state.learner_step not in evaluated:
            await self._evaluate()
        self._clock.start()
        while self._state.learner_step < self._config.run.num_steps and not self._stop.is_set():
            if await self._step():
                await self._after_step()
        if self._stop.is_set():
            await self._checkpoint()
        unfinished = self._state.learner_step < self._config.run.num_steps or self._evaluation_was_cut
        return RunResult(learner_step=self._state.learner_step, interrupted=unfinished)

    async def _unless_stopped(self, work: Coroutine[None, None, T]) -> T | None:
        """The result of `work`, or None if a stop came first: `work` is cancelled and has ended."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not working.done():
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        return None if working.cancelled() else working.result()

    async def _step(self) -> bool:
        """One step; False if a stop came while trajectories were made (the step is abandoned).

        Its prompts are then pending: the state still holds the position before them, so that a
        resumed run draws them again.
        """
        trajectories = await self._unless_stopped(self._produce_step())
        if trajectories is None:
            return False
        await self._finish_step(trajectories)
        return True

    async def _produce_step(self) -> tuple[Trajectory, ...]:
        """Trajectories of one step, in the order of their prompts.

        Where nothing is left to learn from because the refinement gate has refused, as it may by design,
        further problems are drawn into the same step. A few broken ones among the refused do not end that.
        """
        trajectories: tuple[Trajectory, ...] = ()
        for _ in range(_MOST_ROUNDS):
            trajectories += await self._produce_round()
            if any(t.outcome is Outcome.CONSUMED for t in trajectories) or self._is_broken(trajectories):
                break
        return trajectories

    async def _produce_round(self) -> tuple[Trajectory, ...]:
        """Trajectories of the next problems, in the order of their prompts."""
        prompts = self._draw_prompts()
        stages = StepStages(
            num_trajectories=len(prompts),
            barrier=self._config.pipeline.stage_barrier,
            clock=self._clock,
            observer=self._observer,
        )
        try:
            async with asyncio.TaskGroup() as group:
                for prompt in prompts:
                    group.create_task(self._producer.produce(prompt, stages))
        except BaseExceptionGroup as failures:
            # The siblings were cancelled because of the first; that one is the news.
            raise failures.exceptions[0] from failures
        order = {_prompt_key(prompt): i for i, prompt in enumerate(prompts)}
        # All of the step are there now, since the buffer has room for a whole step.
        taken = await self._buffer.take(len(prompts))
        if Counter(_prompt_key(t.prompt) for t in taken) != Counter(order.keys()):
            raise ValueError(
                f"step {self._state.learner_step + 1}: {len(taken)} trajectories came out of the buffer for "
                f"{len(prompts)} prompts; a prompt was lost or counted twice"
            )
        return tuple(sorted(taken, key=lambda t: order[_prompt_key(t.prompt)]))

    def _draw_prompts(self) -> tuple[Prompt, ...]:
        step = self._state.learner_step + 1
        prompts = []
        for problem, epoch in self._stream.take(self._config.pipeline.prompts_per_step):
            token_ids = self._producer.prompts.student(problem)
            for sample_index in range(self._config.pipeline.rollouts_per_prompt):
                prompts.append(
                    Prompt(
                        problem=problem,
                        epoch=epoch,
                        sample_index=sample_index,
                        token_ids=token_ids,
                        seed=derive_seed(self._config.run.seed, step, epoch, problem.prompt_id, sample_index),
                    )
                )
        return tuple(prompts)

    async def _finish_step(self, trajectories: tuple[Trajectory, ...]) -> None:
        """Learn, push, record."""
        step = self._state.learner_step + 1
        await self._recorder.trajectories(trajectories, learner_step=step)
        consumed = tuple(t for t in trajectories if t.outcome is Outcome.CONSUMED)
        await self._refuse_empty_step(trajectories, consumed)
        batch = step_batch(
            consumed, learner_step=step, method=self._config.method, learner=self._config.learner
        )
        staleness_max = check_staleness(
            consumed,
            learner_version=self._state.learner_step,
            max_staleness=self._config.pipeline.max_staleness,
        )
        self._observer.on_stage(Stage.LEARN, 0, 1)
        with self._clock.stage(Stage.LEARN):
            learned = await self._learner.learn(batch)
        self._observer.on_stage(Stage.SYNC, 0, 1)
        with self._clock.stage(Stage.SYNC):
            synced = await self._weight_sync.push(learned.policy_version)
        self._state = self._state.after_step(
            learner_step=learned.learner_step,
            stream=self._stream.state(),
            num_in=len(trajectories),
            num_consumed=len(consumed),
            num_rejected=len(trajectories) - len(consumed),
        )
        metrics = step_metrics(
            trajectories,
            step=learned,
            sync=synced,
            times=self._clock.lap(),
            staleness_max=staleness_max,
            prompts_in=len(trajectories),
        )
        self._observer.on_step(metrics)

    async def _refuse_empty_step(
        self, trajectories: tuple[Trajectory, ...], consumed: tuple[Trajectory, ...]
    ) -> None:
        """End the run, with a checkpoint, if too little of a step is left to learn from."""
        is_broken = self._is_broken(trajectories)
        if consumed and not is_broken:
            return
        await self._checkpoint()
        reasons = sorted({t.reason.value for t in trajectories if t.outcome is Outcome.REJECTED})
        what = "too many trajectories of one step were rejected"
        remedy = (
            "more teacher.sampling.max_tokens or a larger teacher.engine.max_model_len against truncation"
        )
        if not is_broken:
            what = "the refinement gate leaves nothing to learn from"
            remedy = "method.refine_gate.on_refusal=rollout or another method.refine_gate.kind"
        raise RunFailedError(
            describe(
                what,
                where=f"step {self._state.learner_step + 1}, {len(trajectories)} trajectories",
                got=f"{_broken_share(trajectories):.0%} rejected, {len(consumed)} left "
                f"({', '.join(reasons)})",
                expected=f"at most {self._config.pipeline.max_rejected_share:.0%}, and one to learn from",
                remedy=f"read the step's trajectories/*.parquet, then --resume: {remedy}",
            )
        )

    def _is_broken(self, trajectories: tuple[Trajectory, ...]) -> bool:
        """More of them are rejected than the run puts up with; refusals by design are none of those."""
        share = _broken_share(trajectories)
        return share == 1.0 or share > self._config.pipeline.max_rejected_share

    async def _after_step(self) -> None:
        step, run = self._state.learner_step, self._config.run
        if self._evaluation_is_due():
            await self._evaluate()
        if step == run.num_steps or (run.checkpoint_every and step % run.checkpoint_every == 0):
            await self._checkpoint()
        # Evaluations and checkpoints are not part of a step's time.
        self._clock.start()

    def _evaluation_is_due(self) -> bool:
        """Before the first step, after the last, and every `run.eval_every` between them."""
        step, run = self._state.learner_step, self._config.run
        return step in (0, run.num_steps) or (run.eval_every > 0 and step % run.eval_every == 0)

    async def _evaluate(self) -> None:
        if self._evaluator is None:
            return
        report = await self._unless_stopped(self._evaluator.evaluate(learner_step=self._state.learner_step))
        if report is None:
            self._evaluation_was_cut = True
            return
        self._observer.on_eval(report)

    async def _checkpoint(self) -> None:
        await self._recorder.checkpoint(self._state, self._learner)

    async def _restore(self, folder: Path) -> None:
        self._state = RunState.read(folder)
        policy_version = await self._learner.load(folder)
        if policy_version != self._state.learner_step:
            raise RunFailedError(
                describe(
                    "the checkpoint does not fit together",
                    where=str(folder),
                    got=f"learner at version {policy_version}, run at step {self._state.learner_step}",
                    expected="the same",
                    remedy="resume from an older checkpoint: delete or move this folder",
                )
            )
        self._stream.restore(self._state.stream)


def _prompt_key(prompt: Prompt) -> tuple[str, int, int]:
    return prompt.problem.prompt_id, prompt.epoch, prompt.sample_index


def _broken_share(trajectories: tuple[Trajectory, ...]) -> float:
    """Of what is rejected, or whose refinement is, for another reason than the gate's design. The latter
    counts although its rollout may be trained on: a teacher that cannot rewrite must not go unnoticed."""
    reasons = [t.gate_reason or t.reason for t in trajectories]
    return sum(bool(reason) and reason not in REFUSED_BY_DESIGN for reason in reasons) / len(reasons)
