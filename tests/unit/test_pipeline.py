"""The run loop on scripted roles: order, identity, rejection, stop, resume."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.fakes import (
    FakeGenerator,
    FakeLearner,
    FakeTask,
    FakeTeacher,
    FakeWeightSync,
    RecordingObserver,
    completion,
)
from trd_ray.activity import RoleActivity
from trd_ray.activity_records import LEARNER
from trd_ray.buffer import TrajectoryBuffer
from trd_ray.choices import Divergence, OnRefusal, OverStale, RefineGate, Reward
from trd_ray.config import (
    MethodConfig,
    PipelineConfig,
    RefineGateConfig,
    RewardConfig,
    RunConfig,
    TrdConfig,
)
from trd_ray.data import FiniteStream
from trd_ray.device_turns import NoTurns
from trd_ray.errors import RunFailedError
from trd_ray.feed import PromptFeed
from trd_ray.pipeline import Pipeline
from trd_ray.production import Producer
from trd_ray.recorder import Recorder
from trd_ray.refinement import PromptTooLong
from trd_ray.roles import Role
from trd_ray.run_folder import RunFolder
from trd_ray.trajectory_log import read_trajectories
from trd_ray.types import (
    IntArray,
    Problem,
    Prompt,
    RefinePrompt,
    Rollout,
    StopReason,
    SyncReport,
    TeacherContext,
    TrajectorySource,
)


class FakePrompts:
    """Prompts as short id lists, so that a test can tell them apart."""

    too_long = False

    def student(self, problem: Problem) -> IntArray:
        return np.asarray([1, int(problem.prompt_id)], dtype=np.int32)

    def refine(self, rollout: Rollout) -> RefinePrompt | PromptTooLong:
        if self.too_long:
            return PromptTooLong(num_tokens=9, max_prompt_tokens=8)
        ids = np.asarray([2, int(rollout.prompt.problem.prompt_id)], dtype=np.int32)
        return RefinePrompt(token_ids=ids, num_cut_rollout_tokens=0, num_cut_reference_tokens=0)

    def echoes(self, text: str) -> bool:
        return "instructions" in text

    def score_context(
        self, prompt: Prompt, refine: RefinePrompt | None, *, context: TeacherContext, num_tokens: int
    ) -> IntArray | PromptTooLong:
        if context is TeacherContext.REFINE:
            assert refine is not None
            return refine.token_ids
        return prompt.token_ids


@dataclass
class Run:
    """A pipeline on fakes and everything that it touches."""

    config: TrdConfig
    folder: RunFolder
    generator: FakeGenerator
    teacher: FakeTeacher
    learner: FakeLearner
    sync: FakeWeightSync
    prompts: FakePrompts
    observer: RecordingObserver
    stream: FiniteStream
    pipeline: Pipeline


def watched() -> RoleActivity:
    activity = RoleActivity()
    activity.add(LEARNER, Role.LEARNER)
    return activity


def make_run(tmp_path: Path, *, name: str = "run", open_existing: bool = False, **changes: object) -> Run:
    config = TrdConfig(
        run=RunConfig(dir=str(tmp_path / name), num_steps=3, checkpoint_every=1, keep_checkpoints=9),
        method=MethodConfig(),
        pipeline=PipelineConfig(prompts_per_step=2, rollouts_per_prompt=2),
    )
    config = replace(config, **changes)
    folder = (RunFolder.open if open_existing else RunFolder.create)(config.run.dir)
    folder.config.write_text("x: 1")
    generator = FakeGenerator()
    teacher, learner, prompts, observer = FakeTeacher(), FakeLearner(), FakePrompts(), RecordingObserver()
    sync = FakeWeightSync(generator)
    problems = tuple(Problem(prompt_id=str(i), problem=f"p{i}", answer="right") for i in range(5))
    stream = FiniteStream(problems, seed=config.run.seed)
    producer = Producer(
        generator=generator,
        teacher=teacher,
        buffer=TrajectoryBuffer(capacity=9 * config.pipeline.trajectories_per_step),
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
        weight_sync=sync,
        feed=PromptFeed(stream, prompts.student, pipeline=config.pipeline, seed=config.run.seed),
        evaluator=None,
        recorder=Recorder(folder, keep_checkpoints=config.run.keep_checkpoints),
        observer=observer,
        activity=watched(),
        turns=NoTurns(),
    )
    return Run(config, folder, generator, teacher, learner, sync, prompts, observer, stream, pipeline)


async def test_each_step_rolls_out_refines_scores_learns_and_pushes(tmp_path: Path):
    run = make_run(tmp_path)
    result = await run.pipeline.run()
    assert (result.learner_step, result.interrupted) == (3, False)
    assert run.sync.pushed == [0, 1, 2, 3]
    assert [b.learner_step for b in run.learner.batches] == [1, 2, 3]
    assert len(run.generator.asked) == len(run.teacher.refined) == len(run.teacher.scored) == 3 * 4
    # The rewrite is what is trained on, scored under the prompt that it was made from.
    context, tokens = run.teacher.scored[0]
    assert context[0] == 2
    assert tokens.tolist() == completion("right").token_ids.tolist()
    assert [m.refined_accuracy for m in run.observer.steps] == [1.0] * 3
    assert [m.rollout_accuracy for m in run.observer.steps] == [0.0] * 3
    assert [m.flips_wrong_to_right for m in run.observer.steps] == [4] * 3


async def test_samples_of_a_problem_have_different_seeds_and_steps_too(tmp_path: Path):
    run = make_run(tmp_path)
    await run.pipeline.run()
    assert len({p.seed for p in run.generator.asked}) == len(run.generator.asked)


async def test_rollout_method_trains_on_the_rollout_without_asking_for_a_rewrite(tmp_path: Path):
    method = MethodConfig(trajectory=TrajectorySource.ROLLOUT, teacher_context=TeacherContext.PROMPT)
    run = make_run(tmp_path, method=method)
    await run.pipeline.run()
    assert run.teacher.refined == []
    context, tokens = run.teacher.scored[0]
    assert context[0] == 1
    assert tokens.tolist() == completion("wrong").token_ids.tolist()
    assert run.observer.steps[0].refined_accuracy is None


async def test_student_is_trained_under_its_own_prompt_whatever_the_teacher_saw(tmp_path: Path):
    run = make_run(tmp_path)
    await run.pipeline.run()
    samples = [s for rank in run.learner.batches[0].micro_batches for mb in rank for s in mb]
    assert {s.prompt_ids[0] for s in samples} == {1}
    assert run.learner.batches[0].num_loss_tokens == 4 * len("right")


async def test_barrier_keeps_stages_apart(tmp_path: Path):
    run = make_run(tmp_path)
    await run.pipeline.run()
    names = [str(stage) for stage, _, _ in run.observer.stages if stage in ("rollout", "refine", "score")]
    assert names[:12] == ["rollout"] * 4 + ["refine"] * 4 + ["score"] * 4


async def test_without_barrier_a_finished_rollout_goes_on_at_once(tmp_path: Path):
    pipeline = PipelineConfig(prompts_per_step=2, rollouts_per_prompt=1, stage_barrier=False)
    run = make_run(tmp_path, pipeline=pipeline)
    slow = asyncio.Event()
    original = run.generator.generate

    async def generate(prompt, sampling):
        if len(run.generator.asked) == 1:
            run.generator.asked.append(prompt)
            await slow.wait()
            return completion("wrong")
        return await original(prompt, sampling)

    run.generator.generate = generate  # type: ignore[method-assign]
    running = asyncio.create_task(run.pipeline.run())
    async with asyncio.timeout(10):
        while not run.teacher.scored:
            await asyncio.sleep(0.001)
    assert len(run.teacher.scored) == 1, "the first trajectory is scored while the second still rolls out"
    slow.set()
    await running


async def test_rejected_trajectories_are_kept_with_their_reason_and_not_trained_on(tmp_path: Path):
    run = make_run(tmp_path)
    answers = iter(range(100))
    run.teacher.rewrite = lambda: completion(
        "right", stop=StopReason.LENGTH if next(answers) % 4 == 0 else StopReason.STOP
    )
    await run.pipeline.run()
    metrics = run.observer.steps[0]
    assert (metrics.num_consumed, metrics.num_rejected) == (3, 1)
    assert metrics.rejected_by_reason == {"refine_truncated": 1}
    rows = list(read_trajectories(run.folder.trajectories, steps={1}))
    assert sorted((str(r.outcome), str(r.reason)) for r in rows) == [
        ("consumed", ""), ("consumed", ""), ("consumed", ""), ("rejected", "refine_truncated"),
    ]  # fmt: skip
    assert run.learner.batches[0].num_loss_tokens == 3 * len("right")


async def test_run_ends_when_too_many_are_rejected_and_keeps_them(tmp_path: Path):
    run = make_run(tmp_path)
    run.prompts.too_long = True
    with pytest.raises(RunFailedError, match=r"100% rejected, 0 left \(prompt_too_long\)"):
        await run.pipeline.run()
    assert run.learner.batches == []
    assert len(list(read_trajectories(run.folder.trajectories))) == 4


async def test_a_refinement_that_echoes_its_prompt_is_rejected_with_that_reason(tmp_path: Path):
    run = make_run(tmp_path)
    answers = iter(["right", "the instructions", "right", "right"] * 3)
    run.teacher.rewrite = lambda: completion(next(answers))
    await run.pipeline.run()
    assert run.observer.steps[0].rejected_by_reason == {"echo": 1}


async def test_stale_rollout_is_a_broken_contract(tmp_path: Path):
    run = make_run(tmp_path)
    push = run.sync.push

    async def forgetful(policy_version):
        report = await push(policy_version)
        run.generator.policy_version = 0
        return report

    run.sync.push = forgetful  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"staleness 1 .* expected 0 \.\. 0"):
        await run.pipeline.run()


async def test_error_of_a_role_is_raised_as_it_is(tmp_path: Path):
    run = make_run(tmp_path)

    def broken(prompt):
        raise ZeroDivisionError("engine")

    run.generator.answer = broken
    with pytest.raises(ZeroDivisionError, match="engine"):
        await run.pipeline.run()


async def test_stop_while_rolling_out_abandons_the_step_and_checkpoints_the_last_whole_one(tmp_path: Path):
    run = make_run(tmp_path, run=RunConfig(dir=str(tmp_path / "run"), num_steps=3, checkpoint_every=0))
    steps_done = run.observer.steps
    gate = asyncio.Event()
    gate.set()
    run.generator.gate = gate
    run.learner.during_learn = gate.clear
    running = asyncio.create_task(run.pipeline.run())
    async with asyncio.timeout(10):
        while len(run.generator.asked) < 8:
            await asyncio.sleep(0.001)
    run.pipeline.request_stop()
    result = await running
    assert (result.learner_step, result.interrupted, len(steps_done)) == (1, True, 1)
    checkpoint = run.folder.latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == 1


async def test_stop_during_learning_ends_after_that_step(tmp_path: Path):
    run = make_run(tmp_path)
    run.learner.during_learn = run.pipeline.request_stop
    result = await run.pipeline.run()
    assert (result.learner_step, result.interrupted) == (1, True)
    assert run.sync.pushed == [0, 1]


async def test_resumed_run_asks_for_exactly_the_prompts_of_the_uninterrupted_one(tmp_path: Path):
    whole = make_run(tmp_path, name="whole")
    await whole.pipeline.run()

    first = make_run(tmp_path, name="parts")
    first.learner.during_learn = first.pipeline.request_stop
    await first.pipeline.run()
    second = make_run(tmp_path, name="parts", open_existing=True)
    checkpoint = second.folder.latest_checkpoint()
    assert checkpoint is not None
    result = await second.pipeline.run(resume_from=checkpoint.path)

    assert result.learner_step == 3
    assert second.sync.pushed == [1, 2, 3], "resumed generators get the restored weights first"
    parts = first.generator.asked + second.generator.asked
    assert [(p.problem.prompt_id, p.epoch, p.sample_index, p.seed) for p in parts] == [
        (p.problem.prompt_id, p.epoch, p.sample_index, p.seed) for p in whole.generator.asked
    ]


async def test_evaluation_cut_by_a_stop_is_made_up_on_resume(tmp_path: Path):
    class Evaluator:
        def __init__(self) -> None:
            self.steps: list[int] = []

        async def evaluate(self, *, learner_step: int) -> int:
            self.steps.append(learner_step)
            if first.pipeline is stopped and learner_step == 3:
                first.pipeline.request_stop()
                await asyncio.Event().wait()
            return learner_step

    first = make_run(tmp_path, name="parts")
    stopped = first.pipeline
    evaluator = Evaluator()
    first.pipeline._evaluator = evaluator  # type: ignore[assignment]
    await first.pipeline.run()
    assert first.observer.evals == [0]

    second = make_run(tmp_path, name="parts", open_existing=True)
    stopped = None
    second.pipeline._evaluator = evaluator  # type: ignore[assignment]
    checkpoint = second.folder.latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == 3
    await second.pipeline.run(resume_from=checkpoint.path, evaluated={0})
    assert second.observer.evals == [3]


async def test_a_step_that_the_gate_has_refused_whole_draws_further_problems(tmp_path: Path):
    gate = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT)
    run = make_run(tmp_path, method=MethodConfig(refine_gate=gate))
    answers = iter(["bad"] * 4 + ["right"] * 100)
    run.teacher.rewrite = lambda: completion(next(answers))
    await run.pipeline.run()
    first, second, *_ = run.observer.steps
    assert (first.prompts_in, first.num_consumed, first.num_rejected) == (8, 4, 4)
    assert first.refinement_refused_by_reason == {"refinement_wrong": 4}
    assert second.prompts_in == 4
    rows = list(read_trajectories(run.folder.trajectories, steps={1}))
    keys = {(r.prompt_id, r.epoch, r.sample_index) for r in rows}
    assert len(keys) == len(rows) == 8, "nothing is lost and nothing counted twice"


async def test_a_gate_that_refuses_everything_ends_the_run(tmp_path: Path):
    gate = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT)
    run = make_run(tmp_path, method=MethodConfig(refine_gate=gate))
    run.teacher.rewrite = lambda: completion("bad")
    with pytest.raises(RunFailedError, match=r"0 left \(refinement_wrong\)"):
        await run.pipeline.run()
    assert run.learner.batches == []


async def test_refusals_by_design_do_not_count_as_broken(tmp_path: Path):
    gate = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT)
    run = make_run(tmp_path, method=MethodConfig(refine_gate=gate))
    answers = iter(["right", "bad", "bad", "bad"] * 3)
    run.teacher.rewrite = lambda: completion(next(answers))
    result = await run.pipeline.run()
    assert result.learner_step == 3, "three of four refused, above max_rejected_share"


async def test_grpo_gives_each_rollout_its_advantage_and_its_logprobs(tmp_path: Path):
    method = MethodConfig(
        trajectory=TrajectorySource.ROLLOUT,
        teacher_context=TeacherContext.PROMPT,
        divergence=Divergence.NONE,
        reward=RewardConfig(kind=Reward.GRPO),
    )
    run = make_run(tmp_path, method=method)
    run.generator.answer = lambda prompt: completion("right" if prompt.sample_index else "wrong")
    await run.pipeline.run()
    samples = [s for rank in run.learner.batches[0].micro_batches for mb in rank for s in mb]
    # Two rollouts a problem, one of them right: rewards 0 and 1, mean 1/2, deviation 1/2.
    right = completion("right").token_ids.tolist()
    assert sorted(s.advantage for s in samples) == [-1.0, -1.0, 1.0, 1.0]
    assert all(s.advantage == 1.0 for s in samples if s.response_ids.tolist() == right)
    assert all(s.target is None and s.rollout_logprobs is not None for s in samples)
    assert run.teacher.scored == []


async def test_one_broken_trajectory_among_refused_ones_does_not_end_the_run(tmp_path: Path):
    gate = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT)
    run = make_run(tmp_path, method=MethodConfig(refine_gate=gate))
    answers = iter([completion("right", stop=StopReason.LENGTH), *[completion("bad")] * 3])
    run.teacher.rewrite = lambda: next(answers, completion("right"))
    await run.pipeline.run()
    first = run.observer.steps[0]
    assert first.rejected_by_reason == {"refine_truncated": 1, "refinement_wrong": 3}
    assert (first.prompts_in, first.num_consumed) == (8, 4)


async def test_a_step_whose_every_trajectory_is_broken_ends_the_run_whatever_the_limit(tmp_path: Path):
    pipeline = PipelineConfig(prompts_per_step=2, rollouts_per_prompt=2, max_rejected_share=1.0)
    run = make_run(tmp_path, pipeline=pipeline)
    run.teacher.rewrite = lambda: completion("right", stop=StopReason.LENGTH)
    with pytest.raises(
        RunFailedError, match=r"too many .*\n.*\n.*100% rejected, 0 left \(refine_truncated\)"
    ):
        await run.pipeline.run()
    assert len(run.generator.asked) == 4, "no further problems are drawn"


async def test_a_resumed_run_draws_the_extra_problems_of_a_step_again(tmp_path: Path):
    gate = RefineGateConfig(kind=RefineGate.FAILED_ONLY)
    method = MethodConfig(refine_gate=gate)

    def answer(prompt: Prompt):
        return completion("right" if int(prompt.problem.prompt_id) < 4 else "wrong")

    whole = make_run(tmp_path, name="whole", method=method)
    whole.generator.answer = answer
    await whole.pipeline.run()
    assert any(m.prompts_in > 4 for m in whole.observer.steps), "some step had to draw more"

    first = make_run(tmp_path, name="parts", method=method)
    first.generator.answer = answer
    first.learner.during_learn = first.pipeline.request_stop
    await first.pipeline.run()
    second = make_run(tmp_path, name="parts", open_existing=True, method=method)
    second.generator.answer = answer
    checkpoint = second.folder.latest_checkpoint()
    assert checkpoint is not None
    await second.pipeline.run(resume_from=checkpoint.path)
    parts = first.generator.asked + second.generator.asked
    assert [(p.problem.prompt_id, p.epoch, p.sample_index, p.seed) for p in parts] == [
        (p.problem.prompt_id, p.epoch, p.sample_index, p.seed) for p in whole.generator.asked
    ]


async def test_a_teacher_that_cannot_rewrite_ends_the_run_also_where_rollouts_stand_in(tmp_path: Path):
    gate = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT, on_refusal=OnRefusal.ROLLOUT)
    run = make_run(tmp_path, method=MethodConfig(refine_gate=gate))
    run.teacher.rewrite = lambda: completion("right", stop=StopReason.LENGTH)
    with pytest.raises(RunFailedError, match="too many trajectories"):
        await run.pipeline.run()


ONE_AHEAD = PipelineConfig(
    prompts_per_step=2, rollouts_per_prompt=2, stage_barrier=False, max_staleness=1, max_rejected_share=1.0
)


async def test_generation_runs_one_step_ahead_while_the_learner_learns(tmp_path: Path):
    run = make_run(tmp_path, pipeline=ONE_AHEAD)
    learning, go_on = asyncio.Event(), asyncio.Event()
    learn = run.learner.learn

    async def slow(batch):
        learning.set()
        await go_on.wait()
        return await learn(batch)

    run.learner.learn = slow  # type: ignore[method-assign]
    running = asyncio.create_task(run.pipeline.run())
    async with asyncio.timeout(10):
        await learning.wait()
        while len(run.teacher.scored) < 8:
            await asyncio.sleep(0.001)
    assert len(run.generator.asked) == 8, "the step in hand and one more, and not three"
    go_on.set()
    await running
    assert [m.staleness_max for m in run.observer.steps] == [0, 1, 1]
    assert [m.prompts_pending for m in run.observer.steps][-1] == 0


async def test_a_slow_rollout_does_not_hold_up_the_others_and_is_dropped_when_over_stale(tmp_path: Path):
    run = make_run(tmp_path, pipeline=ONE_AHEAD, run=RunConfig(dir=str(tmp_path / "run"), num_steps=5))
    release = asyncio.Event()
    original = run.generator.generate
    first: list[Prompt] = []

    async def generate(prompt, sampling):
        if not first:
            first.append(prompt)
            made = await original(prompt, sampling)
            await release.wait()
            return made
        return await original(prompt, sampling)

    run.generator.generate = generate  # type: ignore[method-assign]
    run.learner.during_learn = lambda: release.set() if run.learner.policy_version == 2 else None
    await run.pipeline.run()
    rejected = [m for m in run.observer.steps if m.rejected_by_reason]
    assert [m.rejected_by_reason for m in rejected] == [{"stale": 1}]
    assert all(m.num_consumed == 4 for m in run.observer.steps), "another prompt took its place"
    rows = list(read_trajectories(run.folder.trajectories))
    keys = {(r.prompt_id, r.epoch, r.sample_index) for r in rows}
    assert len(keys) == len(rows) == 21


async def test_an_over_stale_prompt_is_made_anew_where_that_is_the_policy(tmp_path: Path):
    pipeline = replace(ONE_AHEAD, over_stale=OverStale.REFRESH)
    run = make_run(tmp_path, pipeline=pipeline, run=RunConfig(dir=str(tmp_path / "run"), num_steps=5))
    release = asyncio.Event()
    original = run.generator.generate
    first: list[Prompt] = []

    async def generate(prompt, sampling):
        made = await original(prompt, sampling)
        if not first:
            first.append(prompt)
            await release.wait()
        return made

    run.generator.generate = generate  # type: ignore[method-assign]
    run.learner.during_learn = lambda: release.set() if run.learner.policy_version == 2 else None
    await run.pipeline.run()
    assert run.generator.asked.count(first[0]) == 2
    rows = list(read_trajectories(run.folder.trajectories))
    assert len({(r.prompt_id, r.epoch, r.sample_index) for r in rows}) == len(rows) == 20
    assert {str(r.outcome) for r in rows} == {"consumed"}


async def test_slots_bound_what_is_in_flight(tmp_path: Path):
    run = make_run(tmp_path, pipeline=replace(ONE_AHEAD, max_in_flight=3))
    most = 0
    original = run.generator.generate
    in_flight = 0

    async def generate(prompt, sampling):
        nonlocal most, in_flight
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1
        return await original(prompt, sampling)

    run.generator.generate = generate  # type: ignore[method-assign]
    await run.pipeline.run()
    assert most == 3


async def test_a_stopped_run_that_was_ahead_resumes_with_its_pending_prompts_first(tmp_path: Path):
    first = make_run(tmp_path, name="parts", pipeline=ONE_AHEAD)
    first.learner.during_learn = first.pipeline.request_stop
    await first.pipeline.run()
    second = make_run(tmp_path, name="parts", open_existing=True, pipeline=ONE_AHEAD)
    checkpoint = second.folder.latest_checkpoint()
    assert checkpoint is not None
    await second.pipeline.run(resume_from=checkpoint.path)
    rows = list(read_trajectories(second.folder.trajectories))
    keys = [(r.prompt_id, r.epoch, r.sample_index) for r in rows]
    assert len(set(keys)) == len(keys) == 3 * 4, "no prompt is lost and none counted twice"


async def test_a_role_that_fails_leaves_a_checkpoint_of_what_was_learnt(tmp_path: Path):
    run = make_run(tmp_path, run=RunConfig(dir=str(tmp_path / "run"), num_steps=3, checkpoint_every=0))

    def answer(prompt: Prompt):
        if run.learner.policy_version == 2:
            raise RunFailedError("no generator is left")
        return completion("wrong")

    run.generator.answer = answer
    with pytest.raises(RunFailedError, match="no generator is left"):
        await run.pipeline.run()
    checkpoint = run.folder.latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == 2


async def test_a_push_that_fails_leaves_a_checkpoint_of_the_step_that_was_learnt(tmp_path: Path):
    run = make_run(tmp_path, run=RunConfig(dir=str(tmp_path / "run"), num_steps=3, checkpoint_every=0))
    push = run.sync.push

    async def failing_push(policy_version: int) -> SyncReport:
        if policy_version == 2:
            raise RunFailedError("no generator is left")
        return await push(policy_version)

    run.sync.push = failing_push  # type: ignore[method-assign]
    with pytest.raises(RunFailedError, match="no generator"):
        await run.pipeline.run()
    assert [m.learner_step for m in run.observer.steps] == [1, 2]
    checkpoint = run.folder.latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == 2

    again = make_run(tmp_path, open_existing=True)
    await again.pipeline.run(resume_from=checkpoint.path)
    assert again.sync.pushed == [2, 3]
    keys = [(r.prompt_id, r.epoch, r.sample_index) for r in read_trajectories(run.folder.trajectories)]
    assert len(keys) == len(set(keys)) == 3 * 4


async def test_a_stop_while_a_step_draws_further_problems_leaves_nothing_that_is_too_old(tmp_path: Path):
    gate = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT)
    method = MethodConfig(refine_gate=gate)
    first = make_run(tmp_path, name="parts", method=method)
    first.teacher.rewrite = lambda: completion("bad")
    stopped = asyncio.Event()
    generate = first.generator.generate

    async def until_the_second_round(prompt, sampling):
        if len(first.generator.asked) >= 4:
            first.generator.asked.append(prompt)
            if len(first.generator.asked) == 8:
                first.pipeline.request_stop()
            await stopped.wait()
        return await generate(prompt, sampling)

    first.generator.generate = until_the_second_round  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        assert (await first.pipeline.run()).learner_step == 0

    second = make_run(tmp_path, name="parts", open_existing=True, method=method)
    checkpoint = second.folder.latest_checkpoint()
    assert checkpoint is not None
    async with asyncio.timeout(10):
        await second.pipeline.run(resume_from=checkpoint.path)
    assert [m.num_trajectories for m in second.observer.steps] == [8, 4, 4]


async def test_a_failure_of_production_is_told_also_where_a_stop_came_first(tmp_path: Path):
    run = make_run(tmp_path, pipeline=ONE_AHEAD)
    learn = run.learner.learn

    async def learn_meanwhile(batch):
        def broken(prompt):
            raise RunFailedError("no generator is left")

        run.generator.answer = broken
        run.pipeline._production.allow(99)
        run.pipeline.request_stop()
        for _ in range(50):
            await asyncio.sleep(0.001)
        return await learn(batch)

    run.learner.learn = learn_meanwhile  # type: ignore[method-assign]
    with pytest.raises(RunFailedError, match="no generator is left"):
        await run.pipeline.run()
    assert run.folder.latest_checkpoint() is not None


async def test_an_error_that_nobody_foresaw_leaves_a_checkpoint_too(tmp_path: Path):
    run = make_run(tmp_path, run=RunConfig(dir=str(tmp_path / "run"), num_steps=3, checkpoint_every=0))

    def answer(prompt: Prompt):
        if run.learner.policy_version == 1:
            raise ZeroDivisionError("engine")
        return completion("wrong")

    run.generator.answer = answer
    with pytest.raises(ZeroDivisionError, match="engine"):
        await run.pipeline.run()
    checkpoint = run.folder.latest_checkpoint()
    assert checkpoint is not None and checkpoint.learner_step == 1
