"""A run's steps again from its log: the learner alone, without generators, teachers and pushes.

    [log] --> trajectories of a step --> batch --> [learner] --> loss, compared with the run's own

The batch is made by what makes it in a run, so with the same options the losses are the same but for
rounding. With others it shows what another learning rate or loss does with the same data.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from trd_ray.errors import DataError, describe
from trd_ray.interfaces import Learner
from trd_ray.metrics import StepMetrics, step_metrics
from trd_ray.observer import Observer
from trd_ray.recorder import write_checkpoint
from trd_ray.replay_plan import ReplayPlan, consumed_of
from trd_ray.run_folder import RunFolder
from trd_ray.stage_clock import Stage, StageClock
from trd_ray.staleness import staleness
from trd_ray.step_batch import step_batch
from trd_ray.types import LearnerStep, Trajectory, nothing_pushed


@dataclass(frozen=True, kw_only=True)
class LossDifference:
    """How far one step's loss is from that of the run."""

    learner_step: int
    loss: float
    """Of the replay, in nats."""
    run_loss: float
    """NaN where the run's was not finite."""

    @property
    def relative(self) -> float:
        """Over the larger magnitude; 0 if both are NaN, infinite if one is."""
        if math.isnan(self.loss) or math.isnan(self.run_loss):
            return 0.0 if math.isnan(self.loss) and math.isnan(self.run_loss) else math.inf
        if self.loss == self.run_loss:
            return 0.0
        return abs(self.loss - self.run_loss) / max(abs(self.loss), abs(self.run_loss))


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """How a replay ended."""

    learner_step: int
    interrupted: bool
    largest: LossDifference | None
    """The largest relative difference; None if no step was made."""
    last: LossDifference | None


class Replay:
    """Owns the loop of a replay.

    Consumes: the log. Produces: optimizer steps, metrics and checkpoints in a folder of its own. Waits for:
    the log and the learner. Unblocked by: their answers; `request_stop` ends it after the step in hand.
    """

    def __init__(self, plan: ReplayPlan, *, learner: Learner, folder: RunFolder, observer: Observer) -> None:
        self._plan = plan
        self._learner = learner
        self._folder = folder
        self._observer = observer
        self._clock = StageClock()
        self._stop_requested = False

    def request_stop(self) -> None:
        """End after the step in hand, with a checkpoint."""
        self._stop_requested = True

    async def run(self) -> ReplayResult:
        """All steps of the plan; a checkpoint at the end, also when stopped.

        Raises `DataError` for a segment that cannot be read, and whatever the learner raises.
        """
        step, run = 0, self._plan.config.run
        largest = last = None
        while step < self._plan.num_steps and not self._stop_requested:
            step += 1
            learned = await self._step(step)
            last = LossDifference(learner_step=step, loss=learned.loss, run_loss=self._plan.losses[step])
            if largest is None or last.relative > largest.relative:
                largest = last
            if run.checkpoint_every and step % run.checkpoint_every == 0:
                await self._checkpoint(step)
        if step:
            await self._checkpoint(step)
        return ReplayResult(
            learner_step=step, interrupted=step < self._plan.num_steps, largest=largest, last=last
        )

    async def _step(self, step: int) -> LearnerStep:
        config = self._plan.config
        self._clock.start()
        trajectories = await asyncio.to_thread(self._plan.log.read_step, step)
        consumed = consumed_of(trajectories)
        if not consumed:
            raise DataError(
                describe(
                    "a logged step has nothing to learn from", where=f"{self._plan.log.url}, step {step}",
                    got=f"{len(trajectories)} trajectories, all rejected", expected="the step of a run",
                    remedy="replay fewer steps with run.num_steps",
                )
            )  # fmt: skip
        batch = step_batch(consumed, learner_step=step, method=config.method, learner=config.learner)
        self._observer.on_stage(Stage.LEARN, 0, 1)
        with self._clock.stage(Stage.LEARN):
            learned = await self._learner.learn(batch)
        self._observer.on_step(self._metrics(trajectories, consumed, learned))
        return learned

    def _metrics(
        self, trajectories: tuple[Trajectory, ...], consumed: tuple[Trajectory, ...], learned: LearnerStep
    ) -> StepMetrics:
        """As of a run. Throughput is that of the tokens trained on: a replay generates none."""
        times = self._clock.lap()
        metrics = step_metrics(
            trajectories,
            step=learned,
            sync=nothing_pushed(learned.policy_version),
            times=times,
            staleness_max=max(staleness(t, learner_version=learned.learner_step - 1) for t in consumed),
            prompts_in=len(trajectories),
        )
        return replace(metrics, tokens_per_s=learned.num_loss_tokens / times.step_s)

    async def _checkpoint(self, step: int) -> None:
        keep = self._plan.config.run.keep_checkpoints
        await write_checkpoint(self._folder, self._learner, learner_step=step, state=None, keep=keep)


def write_summary(plan: ReplayPlan, folder: RunFolder, result: ReplayResult | None) -> None:
    """Write `replay.json`: what is replayed, and once there is a result, how far the losses are apart."""
    summary: Mapping[str, object] = {
        "source": str(plan.source.path.resolve()),
        "log": plan.log.url,
        "num_steps": plan.num_steps,
        "changed": list(plan.changed),
        "replayed_steps": 0 if result is None else result.learner_step,
        "largest_difference": _difference(None if result is None else result.largest),
    }
    folder.replay.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def _difference(difference: LossDifference | None) -> Mapping[str, object] | None:
    """Strict JSON has no NaN and no infinity."""
    if difference is None:
        return None
    values = {**asdict(difference), "relative": difference.relative}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
