"""The run: written once against `interfaces.py`, wired over Ray or in one process.

    problems --> prompts --> [generator] --> rollout --> [teacher] --> refinement --> judge
                     ^                                                                  |
                     |                                                     [teacher] <--+
                     |                                                         | targets
    [generator] <-- [weight sync] <-- [learner] <-- batch <-- buffer <-- trajectory

Two loops run at once. Production (`production_loop.py`) keeps trajectories in the making, each a task of
its own, and puts them into the buffer. The learner's loop, here, takes them out until a step is whole,
makes one optimizer step, pushes the weights and lets production go on. How far production may be ahead is
`pipeline.max_staleness`: with 0 it waits while the learner learns.

Every prompt ends exactly once: `prompts_in = consumed + rejected + pending` is checked at each step.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trd_ray.activity import RoleActivity
from trd_ray.activity_records import LEARNER, Tally, WaitReason
from trd_ray.buffer import TrajectoryBuffer
from trd_ray.choices import Reward
from trd_ray.collector import StepCollector
from trd_ray.config import TrdConfig
from trd_ray.errors import DiskRefusedError, RunFailedError, brief, describe
from trd_ray.evaluator import Evaluator
from trd_ray.feed import PromptFeed
from trd_ray.garbage import few_collections
from trd_ray.interfaces import DeviceTurns, Learner, WeightSync
from trd_ray.ledger import PromptLedger, prompt_key
from trd_ray.metrics import step_metrics
from trd_ray.observer import Observer
from trd_ray.outcomes import Outcome
from trd_ray.production import Producer
from trd_ray.production_loop import ProductionLoop
from trd_ray.recorder import Recorder, read_finished
from trd_ray.rejections import is_broken, require_enough
from trd_ray.run_state import PendingPrompt, RunState
from trd_ray.stage_clock import Stage, StageClock
from trd_ray.staleness import check_staleness
from trd_ray.step_batch import step_batch
from trd_ray.step_stages import StepStages
from trd_ray.types import SyncReport, Trajectory, nothing_pushed

log = logging.getLogger(__name__)

# Problems are not endless, and a gate that refuses so many, or a run that drops so many as stale, is a
# mistake.
_MOST_ROUNDS = 8

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

    learner_step: int
    interrupted: bool


class Pipeline:
    """Owns the loops of a run and their end.

    Consumes: trajectories. Produces: optimizer steps, pushed weights, the run folder. Waits for: the
    buffer, the learner, the push. Unblocked by: production, their answers, or `request_stop`.
    """

    def __init__(
        self,
        config: TrdConfig,
        *,
        producer: Producer,
        feed: PromptFeed,
        learner: Learner,
        weight_sync: WeightSync,
        evaluator: Evaluator | None,
        recorder: Recorder,
        observer: Observer,
        activity: RoleActivity,
        turns: DeviceTurns,
    ) -> None:
        self._config = config
        self._turns = turns
        self._activity = activity
        self._buffer: TrajectoryBuffer = producer.buffer
        self._feed = feed
        self._learner = learner
        self._weight_sync = weight_sync
        self._evaluator = evaluator
        self._recorder = recorder
        self._observer = observer
        self._ledger = PromptLedger()
        self._counted = self._ledger.count
        self._learner_step = 0
        self._num_extra = 0
        self._clock = StageClock()
        self._stop = asyncio.Event()
        self._evaluation_was_cut = False
        self._producer = producer
        self._production = self._production_loop()
        self._producing: asyncio.Task[None] | None = None
        self._collector = self._step_collector()

    def _production_loop(self) -> ProductionLoop:
        return ProductionLoop(
            feed=self._feed,
            producer=self._producer,
            ledger=self._ledger,
            stages=self._step_stages,
            problems_per_step=self._config.pipeline.prompts_per_step,
            max_in_flight=self._config.pipeline.max_in_flight,
            activity=self._activity,
        )

    def _step_stages(self, num_trajectories: int) -> StepStages:
        return StepStages(
            num_trajectories=num_trajectories,
            barrier=self._config.pipeline.stage_barrier,
            clock=self._clock,
            observer=self._observer,
            turns=self._turns,
        )

    def _step_collector(self) -> StepCollector:
        pipeline = self._config.pipeline
        together = self._config.method.reward.kind is not Reward.NONE
        return StepCollector(
            units_per_step=pipeline.prompts_per_step if together else pipeline.trajectories_per_step,
            unit_size=pipeline.rollouts_per_prompt if together else 1,
            max_staleness=pipeline.max_staleness,
            over_stale=pipeline.over_stale,
        )

    def request_stop(self) -> None:
        """End the run after the step in hand (at once, if it is still making trajectories)."""
        self._stop.set()

    async def run(self, *, resume_from: Path | None = None, evaluated: Collection[int] = ()) -> RunResult:
        """All steps that are left; a checkpoint at the end, also when stopped or when a role fails.

        Args:
            resume_from: a checkpoint folder; None begins at step 0.
            evaluated: steps whose evaluation is on record already.

        Raises `RunFailedError` and whatever a role raises; what is completed stays on disk.
        """
        if resume_from is not None:
            await self._restore(resume_from)
        await self._turns.begin(Stage.SYNC)
        await self._weight_sync.push(self._learner_step)
        if self._evaluation_is_due() and self._learner_step not in evaluated:
            await self._evaluate()
        self._producing = asyncio.create_task(self._production.run())
        try:
            with few_collections():
                await self._steps()
        except DiskRefusedError:
            raise  # a checkpoint would be refused as well
        except Exception:
            await self._checkpoint_after_failure()
            raise
        finally:
            await _ended(self._producing)
        if self._stop.is_set():
            await self._checkpoint()
        if not self._producing.cancelled():
            # A stop that came first must not hide it.
            self._producing.result()
        self._ledger.count.require_whole()
        unfinished = self._learner_step < self._config.run.num_steps or self._evaluation_was_cut
        return RunResult(learner_step=self._learner_step, interrupted=unfinished)

    async def _steps(self) -> None:
        self._start_step_time()
        while self._learner_step < self._config.run.num_steps and not self._stop.is_set():
            self._allow_production()
            with self._activity.waiting(LEARNER, WaitReason.STARVED):
                trajectories = await self._unless_stopped(self._gather_step())
            if trajectories is None:
                return
            await self._finish_step(trajectories)
            await self._after_step()

    def _start_step_time(self) -> None:
        self._clock.start()
        self._activity.start()

    def _allow_production(self) -> None:
        """As far as staleness permits: the step in hand and `max_staleness` more, never beyond the run."""
        pipeline = self._config.pipeline
        steps = min(self._learner_step + 1 + pipeline.max_staleness, self._config.run.num_steps)
        extra = math.ceil(self._num_extra / pipeline.rollouts_per_prompt)
        self._production.allow(steps * pipeline.prompts_per_step + extra)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """The result of `work`, or None if a stop came first: `work` is cancelled and has ended.

        Raises the error of production if that comes first.
        """
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        producing = {self._producing} if self._producing is not None else set()
        try:
            await asyncio.wait({working, stopping, *producing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not working.done():
                await _ended(working)
        if not working.cancelled():
            return working.result()
        if self._producing is not None and self._producing.done():
            self._producing.result()
        return None

    async def _gather_step(self) -> tuple[Trajectory, ...]:
        """The trajectories that end in this step, in the order in which their prompts were drawn.

        Where nothing is left to learn from because the refinement gate has refused, as it may by design,
        further problems are drawn into the same step. A few broken ones among the refused do not end that.
        """
        ended: tuple[Trajectory, ...] = ()
        for _ in range(_MOST_ROUNDS):
            ended += await self._gather_round()
            if self._more_of_the_step(len(ended)):
                continue
            if any(t.outcome is Outcome.CONSUMED for t in ended) or is_broken(ended, self._config.pipeline):
                break
            self._draw_further(self._config.pipeline.trajectories_per_step)
        return self._ledger.order(ended)

    def _more_of_the_step(self, num_ended: int) -> bool:
        """Without staleness all that is pending belongs to the step in hand: after a resume that may be
        several rounds, of which none may be left for the next step."""
        return self._config.pipeline.max_staleness == 0 and self._ledger.count.num_pending > num_ended

    async def _gather_round(self) -> tuple[Trajectory, ...]:
        """As many fresh trajectories as a step has, and those that were dropped meanwhile."""
        most_dropped = _MOST_ROUNDS * self._config.pipeline.trajectories_per_step
        dropped: tuple[Trajectory, ...] = ()
        while True:
            collected = self._collector.collect(learner_version=self._learner_step)
            dropped += collected.dropped
            self._activity.count(Tally.STALE_DROPPED, len(collected.dropped))
            self._activity.count(Tally.REFRESHED, len(collected.refreshed))
            self._draw_further(len(collected.dropped))
            self._production.again(collected.refreshed)
            if collected.trajectories:
                return collected.trajectories + dropped
            if len(dropped) > most_dropped:
                raise RunFailedError(self._too_stale(len(dropped)))
            self._collector.add(await self._buffer.take(max(1, len(self._buffer))))

    def _draw_further(self, num_trajectories: int) -> None:
        if num_trajectories:
            self._num_extra += num_trajectories
            self._allow_production()

    def _too_stale(self, num_dropped: int) -> str:
        return describe(
            "nearly every trajectory is too old when the learner comes to it",
            where=f"step {self._learner_step + 1}",
            got=f"{num_dropped} dropped as stale before one step was whole",
            expected=f"staleness of at most {self._config.pipeline.max_staleness}",
            remedy="raise pipeline.max_staleness, or set pipeline.over_stale=use, then --resume",
        )

    async def _finish_step(self, trajectories: tuple[Trajectory, ...]) -> None:
        """Learn, push, record."""
        step = self._learner_step + 1
        await self._recorder.trajectories(trajectories, learner_step=step)
        consumed = tuple(t for t in trajectories if t.outcome is Outcome.CONSUMED)
        require_enough(trajectories, self._config.pipeline, learner_step=step)
        batch = step_batch(
            consumed, learner_step=step, method=self._config.method, learner=self._config.learner
        )
        staleness_max = check_staleness(
            consumed, learner_version=self._learner_step, pipeline=self._config.pipeline
        )
        self._observer.on_stage(Stage.LEARN, 0, 1)
        with self._clock.stage(Stage.LEARN):
            await self._turns.begin(Stage.LEARN)
            learned = await self._learner.learn(batch)
        # The step is made, whatever fails from here on: a checkpoint that is written then holds it.
        self._learner_step = learned.learner_step
        before, self._counted = self._counted, self._ledger.end(trajectories)
        synced = nothing_pushed(learned.policy_version)
        try:
            if learned.token_values is not None:
                await self._recorder.token_values(trajectories, batch, learned.token_values)
            synced = await self._push(learned.policy_version)
        finally:
            metrics = step_metrics(
                trajectories,
                step=learned,
                sync=synced,
                times=self._clock.lap(),
                staleness_max=staleness_max,
                prompts_in=before.num_pending + self._counted.num_in - before.num_in,
                prompts_pending=self._counted.num_pending,
                activity=self._activity.lap(learner_step=step),
            )
            self._observer.on_step(metrics)

    async def _push(self, policy_version: int) -> SyncReport:
        self._observer.on_stage(Stage.SYNC, 0, 1)
        with self._clock.stage(Stage.SYNC):
            await self._turns.begin(Stage.SYNC)
            return await self._weight_sync.push(policy_version)

    async def _after_step(self) -> None:
        step, run = self._learner_step, self._config.run
        if self._evaluation_is_due():
            await self._evaluate()
        if step == run.num_steps or (run.checkpoint_every and step % run.checkpoint_every == 0):
            await self._checkpoint()
        # Evaluations and checkpoints are not part of a step's time.
        self._start_step_time()

    def _evaluation_is_due(self) -> bool:
        """Before the first step, after the last, and every `run.eval_every` between them."""
        step, run = self._learner_step, self._config.run
        return step in (0, run.num_steps) or (run.eval_every > 0 and step % run.eval_every == 0)

    async def _evaluate(self) -> None:
        if self._evaluator is None:
            return
        await self._turns.begin(Stage.ROLLOUT)
        report = await self._unless_stopped(self._evaluator.evaluate(learner_step=self._learner_step))
        if report is None:
            self._evaluation_was_cut = True
            return
        self._observer.on_eval(report)

    async def _checkpoint(self) -> None:
        await self._turns.begin(Stage.LEARN)
        # Both at once: production goes on while the learner saves.
        state, finished = self._run_state(), self._collector.held + self._buffer.held
        await self._recorder.checkpoint(state, self._learner, finished=finished)

    async def _checkpoint_after_failure(self) -> None:
        """What is learnt must not be lost because another role failed. The failure itself is the news, also
        if the learner is what failed."""
        try:
            self._ledger.count.require_whole()
            await self._checkpoint()
        except Exception as error:  # noqa: BLE001 - the failure before it is what the caller must see
            log.warning("no checkpoint after the failure: %s", brief(error))

    def _run_state(self) -> RunState:
        return RunState(
            learner_step=self._learner_step,
            stream=self._feed.state(),
            num_drawn=self._feed.num_drawn,
            num_extra=self._num_extra,
            prompts=self._ledger.count,
            pending=tuple(PendingPrompt.of(prompt) for prompt in self._ledger.pending),
        )

    async def _restore(self, folder: Path) -> None:
        state = RunState.read(folder)
        await self._turns.begin(Stage.LEARN)
        policy_version = await self._learner.load(folder)
        if policy_version != state.learner_step:
            raise RunFailedError(
                describe(
                    "the checkpoint does not fit together",
                    where=str(folder),
                    got=f"learner at version {policy_version}, run at step {state.learner_step}",
                    expected="the same",
                    remedy="resume from an older checkpoint: delete or move this folder",
                )
            )
        self._learner_step = state.learner_step
        self._num_extra = state.num_extra
        self._feed.restore(state.stream, num_drawn=state.num_drawn)
        self._ledger.restore(state.prompts)
        self._counted = state.prompts
        finished = read_finished(folder)
        self._collector.add(finished)
        is_finished = {prompt_key(trajectory.prompt) for trajectory in finished}
        prompts = tuple(pending.prompt(self._feed) for pending in state.pending)
        for prompt in prompts:
            self._ledger.admit_again(prompt)
        self._production.again([p for p in prompts if prompt_key(p) not in is_finished])


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it is over, whatever it raises."""
    task.cancel()
    await asyncio.wait({task})
