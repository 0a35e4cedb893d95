"""The run loop under random service times, in virtual time: what holds whatever happens when.

A schedule is a seed: of the configuration, of how long each answer takes, and of who fails. A run that could
never end raises at once, because nothing is left that would happen.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.virtual_time import NothingWillHappenError, VirtualTimeLoop, run_virtual
from tests.fakes import FakeGenerator, FakeLearner, FakeTask, FakeTeacher, FakeWeightSync, completion
from tests.unit.test_pipeline import FakePrompts, watched
from trd_ray.buffer import TrajectoryBuffer
from trd_ray.choices import Divergence, OverStale, Reward
from trd_ray.config import MethodConfig, PipelineConfig, RewardConfig, RunConfig, SamplingConfig, TrdConfig
from trd_ray.data import FiniteStream
from trd_ray.device_turns import NoTurns
from trd_ray.errors import RunFailedError
from trd_ray.feed import PromptFeed
from trd_ray.interfaces import Learner
from trd_ray.ledger import PromptKey, prompt_key
from trd_ray.metrics import StepMetrics
from trd_ray.outcomes import Outcome
from trd_ray.pipeline import Pipeline, RunResult
from trd_ray.production import Producer
from trd_ray.recorder import write_checkpoint
from trd_ray.run_folder import RunFolder
from trd_ray.run_state import RunState
from trd_ray.types import (
    Completion,
    IntArray,
    LearnerStep,
    Problem,
    Prompt,
    StopReason,
    SyncReport,
    TeacherCompletion,
    TeacherContext,
    TeacherHidden,
    TrainingBatch,
    Trajectory,
    TrajectorySource,
)

GRPO = MethodConfig(
    trajectory=TrajectorySource.ROLLOUT,
    teacher_context=TeacherContext.PROMPT,
    divergence=Divergence.NONE,
    reward=RewardConfig(kind=Reward.GRPO),
)


class Delays:
    """How long things take: mostly about a second, some nothing, some many steps of the learner."""

    def __init__(self, seed: int, *, none: bool = False) -> None:
        self._random = random.Random(seed)
        self._none = none

    async def wait(self) -> None:
        if self._none:
            return
        kind = self._random.random()
        if kind < 0.2:
            await asyncio.sleep(0)
        elif kind < 0.9:
            await asyncio.sleep(self._random.uniform(0.1, 2.0))
        else:
            await asyncio.sleep(self._random.lognormvariate(2.0, 1.0))


@dataclass
class Fate:
    """Who fails, at which of its calls; nobody if that is never reached."""

    role: str = "nobody"
    at_call: int = 0
    num_calls: int = 0

    def strike(self, role: str) -> None:
        if role != self.role:
            return
        self.num_calls += 1
        if self.num_calls == self.at_call:
            raise RunFailedError(f"the {role} is gone")


@dataclass
class SlowGenerator(FakeGenerator):
    """Its answer depends on the prompt alone, never on when it is asked."""

    delays: Delays = field(default_factory=lambda: Delays(0))
    fate: Fate = field(default_factory=Fate)
    on_ask: Callable[[], None] = lambda: None

    async def generate(self, prompt: Prompt, sampling: SamplingConfig) -> Completion:
        self.asked.append(prompt)
        self.on_ask()
        oldest = self.policy_version
        await self.delays.wait()
        self.fate.strike("generator")
        made = completion("right" if prompt.seed % 3 == 0 else f"wrong{prompt.seed % 7}")
        return replace(made, policy_version_min=oldest, policy_version_max=self.policy_version)


@dataclass
class SlowTeacher(FakeTeacher):
    delays: Delays = field(default_factory=lambda: Delays(0))
    fate: Fate = field(default_factory=Fate)
    breaks_one_in: int = 0
    """Of its refinements; 0 for none."""

    async def generate(
        self, prompt_ids: IntArray, sampling: SamplingConfig, seed: int, *, top_k: int | None = None
    ) -> TeacherCompletion:
        await self.delays.wait()
        self.fate.strike("teacher")
        is_broken = self.breaks_one_in and seed % self.breaks_one_in == 0
        stop = StopReason.LENGTH if is_broken else StopReason.STOP
        return TeacherCompletion(completion=completion(f"right{seed % 5}", stop=stop))

    async def score(self, context_ids: IntArray, token_ids: IntArray) -> TeacherHidden:
        await self.delays.wait()
        return TeacherHidden(hidden=np.full((len(token_ids), 3), float(token_ids.sum()), dtype=np.float32))


@dataclass
class SlowLearner(FakeLearner):
    delays: Delays = field(default_factory=lambda: Delays(0))
    fate: Fate = field(default_factory=Fate)

    async def learn(self, batch: TrainingBatch) -> LearnerStep:
        await self.delays.wait()
        self.fate.strike("learner")
        return await super().learn(batch)


@dataclass
class SlowSync(FakeWeightSync):
    delays: Delays = field(default_factory=lambda: Delays(0))

    async def push(self, policy_version: int) -> SyncReport:
        await self.delays.wait()
        return await super().push(policy_version)


@dataclass
class MemoryRecorder:
    """Keeps what ended in each step; writes checkpoints as the real one does."""

    folder: RunFolder
    ended: dict[int, tuple[Trajectory, ...]] = field(default_factory=dict)

    async def trajectories(self, trajectories: Sequence[Trajectory], *, learner_step: int) -> None:
        self.ended[learner_step] = tuple(trajectories)

    async def checkpoint(
        self, state: RunState, learner: Learner, *, finished: Sequence[Trajectory] = ()
    ) -> None:
        await write_checkpoint(
            self.folder, learner, learner_step=state.learner_step, state=state, keep=9, finished=finished
        )


@dataclass
class CheckingObserver:
    """Holds every step to what must be true of it."""

    pipeline: PipelineConfig
    steps: list[StepMetrics] = field(default_factory=list)

    def on_stage(self, stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total

    def on_step(self, metrics: StepMetrics) -> None:
        # Step metrics refuse prompts that do not add up, but trust what they are told is pending.
        before = self.steps[-1].prompts_pending if self.steps else 0
        assert metrics.prompts_in >= before
        assert metrics.prompts_in == metrics.num_consumed + metrics.num_rejected + metrics.prompts_pending
        if self.pipeline.max_staleness == 0 or self.pipeline.over_stale is not OverStale.USE:
            assert metrics.staleness_max <= self.pipeline.max_staleness
        self.steps.append(metrics)

    def on_eval(self, report: object) -> None:
        raise AssertionError("no evaluation was asked for")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One random configuration, its service times and its failures."""

    seed: int
    pipeline: PipelineConfig
    method: MethodConfig
    num_steps: int
    breaks_one_in: int = 0

    @classmethod
    def draw(cls, seed: int, **pipeline: object) -> Schedule:
        rng = random.Random(seed)
        prompts, rollouts = rng.randint(1, 4), rng.randint(1, 3)
        grpo = rng.random() < 0.3
        options: dict[str, object] = {
            "prompts_per_step": prompts,
            "rollouts_per_prompt": max(2, rollouts) if grpo else rollouts,
            "max_staleness": rng.randint(0, 3),
            "over_stale": rng.choice(list(OverStale)),
            "max_in_flight": rng.choice([0, 0, 1, 2, 5]),
            "stage_barrier": False,
            "max_rejected_share": 1.0,
        }
        return cls(
            seed=seed,
            pipeline=PipelineConfig(**{**options, **pipeline}),  # type: ignore[arg-type]
            method=GRPO if grpo else MethodConfig(),
            num_steps=rng.randint(1, 5),
            breaks_one_in=rng.choice([0, 4, 9]),
        )


@dataclass
class Trial:
    """A pipeline on slow fakes and what it did."""

    pipeline: Pipeline
    generator: SlowGenerator
    learner: SlowLearner
    recorder: MemoryRecorder
    observer: CheckingObserver
    most_in_flight: int = 0

    def keys(self) -> list[PromptKey]:
        return [prompt_key(t.prompt) for ended in self.recorder.ended.values() for t in ended]

    def num_consumed(self) -> int:
        ended = itertools.chain.from_iterable(self.recorder.ended.values())
        return sum(t.outcome is Outcome.CONSUMED for t in ended)


def make_trial(
    schedule: Schedule, folder: RunFolder, *, delays: Delays | None = None, fate: Fate | None = None
) -> Trial:
    delays, fate = delays or Delays(schedule.seed), fate or Fate()
    config = TrdConfig(
        run=RunConfig(dir=str(folder.path), num_steps=schedule.num_steps, checkpoint_every=0),
        method=schedule.method,
        pipeline=schedule.pipeline,
    )
    generator = SlowGenerator(delays=delays, fate=fate)
    teacher = SlowTeacher(delays=delays, fate=fate, breaks_one_in=schedule.breaks_one_in)
    learner = SlowLearner(delays=delays, fate=fate)
    prompts, recorder = FakePrompts(), MemoryRecorder(folder)
    observer = CheckingObserver(config.pipeline)
    problems = tuple(Problem(prompt_id=str(i), problem=f"p{i}", answer="right") for i in range(5))
    producer = Producer(
        generator=generator,
        teacher=teacher,
        buffer=TrajectoryBuffer(
            capacity=(config.pipeline.max_staleness + 1) * config.pipeline.trajectories_per_step
        ),
        task=FakeTask(),
        prompts=prompts,  # type: ignore[arg-type]
        method=config.method,
        score=config.teacher.score,
        rollout_sampling=config.generator.sampling,
        refine_sampling=config.teacher.sampling,
        vocab_size=1_000,
    )
    pipeline = Pipeline(
        config,
        producer=producer,
        learner=learner,
        weight_sync=SlowSync(generator, delays=delays),
        feed=PromptFeed(
            FiniteStream(problems, seed=7), prompts.student, pipeline=config.pipeline, seed=schedule.seed
        ),
        evaluator=None,
        recorder=recorder,  # type: ignore[arg-type]
        observer=observer,
        activity=watched(),
        turns=NoTurns(),
    )
    trial = Trial(pipeline, generator, learner, recorder, observer)

    def watch() -> None:
        trial.most_in_flight = max(trial.most_in_flight, pipeline._activity.in_flight.value)

    generator.on_ask = watch
    return trial


def run(trial: Trial, *, resume_from: Path | None = None, stop_after_s: float | None = None) -> RunResult:
    async def main() -> RunResult:
        if stop_after_s is not None:
            asyncio.get_running_loop().call_later(stop_after_s, trial.pipeline.request_stop)
        return await trial.pipeline.run(resume_from=resume_from)

    return run_virtual(main(), inline_threads=True)


def batch_bytes(batch: TrainingBatch) -> tuple[object, ...]:
    """All that a learner sees of a batch."""

    def sample_bytes() -> Iterator[object]:
        for rank in batch.micro_batches:
            for micro_batch in rank:
                for s in micro_batch:
                    yield s.prompt_ids.tobytes(), s.response_ids.tobytes(), s.advantage
                    if isinstance(s.target, TeacherHidden):
                        yield s.target.hidden.tobytes()
                yield "end of micro-batch"

    return (batch.learner_step, batch.num_loss_tokens, *sample_bytes())


def in_flight_bound(trial: Trial, pipeline: PipelineConfig) -> int:
    ahead = (pipeline.max_staleness + 1) * pipeline.trajectories_per_step
    if any("stale" in m.rejected_by_reason for m in trial.observer.steps):
        # What was dropped is made up for by whole problems, which may be a few rollouts more.
        ahead += pipeline.rollouts_per_prompt - 1
    return min(ahead, pipeline.max_in_flight) if pipeline.max_in_flight else ahead


@pytest.mark.parametrize("first_seed", range(0, 240, 40))
def test_whatever_the_schedule_a_run_ends_and_each_prompt_ends_once(tmp_path: Path, first_seed: int) -> None:
    num_whole = 0
    for seed in range(first_seed, first_seed + 40):
        schedule = Schedule.draw(seed)
        trial = make_trial(schedule, RunFolder(tmp_path / str(seed)))
        try:
            result = run(trial)
        except RunFailedError as error:
            assert schedule.breaks_one_in, f"seed {seed}"
            assert "too many trajectories of one step were rejected" in str(error), f"seed {seed}"
        else:
            num_whole += 1
            assert (result.learner_step, result.interrupted) == (schedule.num_steps, False), f"seed {seed}"
            assert len(trial.learner.batches) == schedule.num_steps
        keys = trial.keys()
        assert len(set(keys)) == len(keys), f"seed {seed}: a prompt ended twice"
        assert trial.most_in_flight <= in_flight_bound(trial, schedule.pipeline), f"seed {seed}"
    assert num_whole > 28


@pytest.mark.parametrize("seed", range(30))
def test_at_staleness_0_batches_are_those_of_the_sequential_order_bit_for_bit(
    tmp_path: Path, seed: int
) -> None:
    schedule = replace(Schedule.draw(seed, max_staleness=0, max_in_flight=0), breaks_one_in=0)
    one_by_one = replace(schedule, pipeline=replace(schedule.pipeline, max_in_flight=1))
    sequential = make_trial(one_by_one, RunFolder(tmp_path / "sequential"), delays=Delays(0, none=True))
    run(sequential)
    expected = [batch_bytes(b) for b in sequential.learner.batches]
    arrivals = set()
    for times in (1, 2):
        trial = make_trial(schedule, RunFolder(tmp_path / str(times)), delays=Delays(1000 * seed + times))
        run(trial)
        assert [batch_bytes(b) for b in trial.learner.batches] == expected
        assert all(m.staleness_max == 0 for m in trial.observer.steps)
        arrivals.add(trial.most_in_flight)
    assert arrivals == {schedule.pipeline.trajectories_per_step}, "they were not made one after the other"


def test_ahead_of_the_learner_service_times_do_change_batches(tmp_path: Path) -> None:
    """So that the test above could fail."""
    pipeline = PipelineConfig(prompts_per_step=4, rollouts_per_prompt=2, stage_barrier=False, max_staleness=1)
    schedule = Schedule(seed=3, pipeline=pipeline, method=MethodConfig(), num_steps=4)
    batches = []
    for times in (1, 2):
        trial = make_trial(schedule, RunFolder(tmp_path / str(times)), delays=Delays(times))
        run(trial)
        batches.append([batch_bytes(b) for b in trial.learner.batches])
    assert batches[0] != batches[1]


def test_a_run_ahead_of_the_learner_does_use_its_allowance(tmp_path: Path) -> None:
    """So that the bound on what is in flight is no empty one."""
    for staleness in range(4):
        pipeline = PipelineConfig(
            prompts_per_step=4, rollouts_per_prompt=2, stage_barrier=False, max_staleness=staleness
        )
        schedule = Schedule(seed=1, pipeline=pipeline, method=MethodConfig(), num_steps=8)
        trial = make_trial(schedule, RunFolder(tmp_path / str(staleness)))
        run(trial)
        assert trial.most_in_flight == 8 * (staleness + 1)
        assert max(m.staleness_max for m in trial.observer.steps) == staleness


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_a_run_that_is_stopped_at_any_time_ends_each_prompt_once_over_both_parts(
    tmp_path: Path, first_seed: int
) -> None:
    for seed in range(first_seed, first_seed + 20):
        schedule = replace(Schedule.draw(seed), breaks_one_in=0)
        whole = make_trial(schedule, RunFolder(tmp_path / f"{seed}_whole"))
        run(whole)
        folder = RunFolder(tmp_path / str(seed))
        first = make_trial(schedule, folder)
        result = run(first, stop_after_s=random.Random(seed).uniform(0.0, 6.0 * schedule.num_steps))
        if not result.interrupted:
            continue
        second = make_trial(schedule, folder, delays=Delays(seed + 1))
        require_whole(first, second, schedule, folder, whole)


@pytest.mark.parametrize("role", ["generator", "teacher", "learner"])
def test_a_run_whose_role_fails_at_any_time_is_made_whole_by_a_resume(tmp_path: Path, role: str) -> None:
    num_failed = 0
    for seed in range(18):
        schedule = replace(Schedule.draw(seed), breaks_one_in=0)
        whole = make_trial(schedule, RunFolder(tmp_path / f"{seed}_whole"))
        run(whole)
        folder = RunFolder(tmp_path / str(seed))
        most_calls = schedule.num_steps * (
            1 if role == "learner" else schedule.pipeline.trajectories_per_step
        )
        fate = Fate(role, at_call=random.Random(seed).randint(1, most_calls))
        first = make_trial(schedule, folder, fate=fate)
        try:
            run(first)
        except RunFailedError as error:
            assert f"the {role} is gone" in str(error)
        else:
            assert schedule.method is GRPO and role == "teacher", f"seed {seed}: it must have failed"
            continue
        num_failed += 1
        second = make_trial(schedule, folder, delays=Delays(seed + 1))
        require_whole(first, second, schedule, folder, whole)
    assert num_failed > 8


def require_whole(first: Trial, second: Trial, schedule: Schedule, folder: RunFolder, whole: Trial) -> None:
    """Resume `second` where `first` ended; both together must be as one run that was never interrupted."""
    seed = schedule.seed
    checkpoint = folder.latest_checkpoint()
    assert checkpoint is not None, f"seed {seed}"
    assert checkpoint.learner_step == len(first.learner.batches), f"seed {seed}: a step was lost"
    result = run(second, resume_from=checkpoint.path)
    assert (result.learner_step, result.interrupted) == (schedule.num_steps, False), f"seed {seed}"
    # A step that was recorded and not learnt from is recorded anew.
    ended = {s: t for s, t in first.recorder.ended.items() if s <= checkpoint.learner_step}
    assert not set(ended) & set(second.recorder.ended), f"seed {seed}: a step was made twice"
    second.recorder.ended = {**ended, **second.recorder.ended}
    keys = second.keys()
    assert len(set(keys)) == len(keys), f"seed {seed}: a prompt ended twice"
    assert second.num_consumed() == whole.num_consumed(), f"seed {seed}"
    if schedule.pipeline.max_staleness == 0:
        both = first.learner.batches + second.learner.batches
        assert [batch_bytes(b) for b in both] == [batch_bytes(b) for b in whole.learner.batches]


def test_virtual_time_is_not_waited_for_and_keeps_its_order() -> None:
    async def main() -> list[tuple[str, float]]:
        loop, seen = asyncio.get_running_loop(), []

        async def note(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, loop.time()))

        await asyncio.gather(note("late", 86_400.0), note("soon", 1.0), asyncio.to_thread(int))
        return seen

    seen = run_virtual(main())
    assert [name for name, _ in seen] == ["soon", "late"]
    assert [round(time) for _, time in seen] == [1, 86_400]


def test_a_loop_in_which_nothing_can_happen_raises_and_does_not_hang() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(NothingWillHappenError, match="no timer is set"):
        VirtualTimeLoop().run_until_complete(main())


def test_drawing_a_step_of_many_problems_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    """Encoding prompts takes time; answers that arrive meanwhile are passed on in between."""
    pipeline = PipelineConfig(
        prompts_per_step=50, rollouts_per_prompt=1, stage_barrier=False, max_staleness=1
    )
    schedule = Schedule(seed=1, pipeline=pipeline, method=MethodConfig(), num_steps=3)
    trial = make_trial(schedule, RunFolder(tmp_path))
    feed, answered = trial.pipeline._feed, True
    original = feed.draw

    def answer() -> None:
        nonlocal answered
        answered = True

    def draw(num: int) -> tuple[Prompt, ...]:
        nonlocal answered
        assert (num, answered) == (1, True)
        answered = False
        asyncio.get_running_loop().call_soon(answer)
        return original(num)

    feed.draw = draw  # type: ignore[method-assign]
    run(trial)
    assert feed.num_drawn >= 150
