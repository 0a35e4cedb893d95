"""Every source of trajectories, gate, refusal and way of scoring, on scripted roles."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests.fakes import FakeGenerator, FakeTask, FakeTeacher, RecordingObserver, completion
from tests.unit.trajectory_records import ints
from trd_ray.buffer import TrajectoryBuffer
from trd_ray.choices import (
    Divergence,
    Locator,
    OnRefusal,
    RefineGate,
    ScoreMethod,
    Support,
)
from trd_ray.config import MethodConfig, RefineGateConfig, SamplingConfig, SpliceConfig
from trd_ray.locate import GraderLocator, make_locator
from trd_ray.outcomes import Outcome, RejectReason
from trd_ray.production import Producer
from trd_ray.refinement import PromptTooLong
from trd_ray.stage_clock import StageClock
from trd_ray.step_stages import StepStages
from trd_ray.types import (
    Completion,
    DeferredTarget,
    Grade,
    IntArray,
    Problem,
    Prompt,
    RefinePrompt,
    Rollout,
    StopReason,
    TeacherContext,
    TeacherHidden,
    TopKTargets,
    Trajectory,
    TrajectorySource,
)

PROMPT_IDS, REFINE_IDS, PRIVILEGED_IDS = ints(1), ints(2, 2), ints(3, 3, 3)
END = 7


@dataclass
class Prompts:
    """Each context is told by its first id; `too_long` lacks room for some."""

    too_long: tuple[TeacherContext, ...] = ()
    max_trained: int = 100
    max_scored: int = 100
    privileged: bool = False

    def refine(self, rollout: Rollout) -> RefinePrompt | PromptTooLong:
        if TeacherContext.REFINE in self.too_long:
            return PromptTooLong(num_tokens=9, max_prompt_tokens=8)
        return RefinePrompt(token_ids=REFINE_IDS, num_cut_rollout_tokens=0, num_cut_reference_tokens=0)

    def echoes(self, text: str) -> bool:
        return False

    def score_context(
        self, prompt: Prompt, refine: RefinePrompt | None, *, context: TeacherContext, num_tokens: int
    ) -> IntArray | PromptTooLong:
        if context in self.too_long:
            return PromptTooLong(num_tokens=9, max_prompt_tokens=8)
        if context is TeacherContext.REFINE:
            assert refine is not None
        known = {
            TeacherContext.PROMPT: PROMPT_IDS,
            TeacherContext.REFINE: REFINE_IDS,
            TeacherContext.PRIVILEGED: PRIVILEGED_IDS,
        }
        return known[context]

    def answer_context(self, prompt: Prompt, *, num_tokens: int) -> IntArray | PromptTooLong:
        context = TeacherContext.PRIVILEGED if self.privileged else TeacherContext.PROMPT
        return self.score_context(prompt, None, context=context, num_tokens=num_tokens)

    def reference(self, problem: Problem) -> IntArray:
        return ints(*map(ord, "right"), END)

    def text(self, token_ids: IntArray) -> str:
        return "".join(chr(i) for i in token_ids if i != END)


@dataclass
class Tokenizer:
    """Characters."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(map(chr, ids))


class StepTask(FakeTask):
    """Right is `right`; wrong begins at the first character that is not its."""

    def grade(self, problem: Problem, text: str) -> Grade:
        wrong = next((i for i, (a, b) in enumerate(zip(text, "right", strict=False)) if a != b), len(text))
        correct = text == "right"
        return Grade(correct=correct, answer=text, first_wrong_char=None if correct else min(wrong, 5))


@dataclass
class Rig:
    method: MethodConfig
    score: ScoreMethod = ScoreMethod.HIDDEN
    rollout: str = "wrong"
    generator: FakeGenerator = field(default_factory=FakeGenerator)
    teacher: FakeTeacher = field(default_factory=FakeTeacher)
    prompts: Prompts = field(default_factory=Prompts)
    stages: list[str] = field(default_factory=list)

    async def make(self) -> Trajectory:
        self.generator.answer = lambda prompt: completion(self.rollout)
        self.prompts.privileged = self.method.privileged
        buffer = TrajectoryBuffer(capacity=1)
        locator = None
        if self.method.trajectory is TrajectorySource.SPLICED:
            locator = make_locator(
                self.method.splice,
                task=StepTask(),
                teacher=self.teacher,
                tokenizer=Tokenizer(),  # type: ignore[arg-type]
            )
        producer = Producer(
            generator=self.generator,
            teacher=self.teacher,
            buffer=buffer,
            task=StepTask(),
            prompts=self.prompts,  # type: ignore[arg-type]
            method=self.method,
            score=self.score,
            rollout_sampling=SamplingConfig(max_tokens=16),
            refine_sampling=SamplingConfig(max_tokens=16),
            vocab_size=1_000,
            locator=locator,
        )
        observer = RecordingObserver()
        stages = StepStages(num_trajectories=1, barrier=True, clock=StageClock(), observer=observer)
        problem = Problem(prompt_id="p", problem="1", answer="1", reference="right")
        prompt = Prompt(problem=problem, epoch=0, sample_index=0, token_ids=PROMPT_IDS, seed=5)
        async with asyncio.timeout(10):
            await producer.produce(prompt, stages)
            (made,) = await buffer.take(1)
        self.stages = [stage for stage, _, _ in observer.stages]
        return made


def method(source: TrajectorySource = TrajectorySource.REFINED, **changes: object) -> MethodConfig:
    context = TeacherContext.REFINE if source is TrajectorySource.REFINED else TeacherContext.PROMPT
    return replace(MethodConfig(trajectory=source, teacher_context=context), **changes)  # type: ignore[arg-type]


def gated(kind: RefineGate, on_refusal: OnRefusal = OnRefusal.NOTHING, **options: float) -> MethodConfig:
    return method(refine_gate=RefineGateConfig(kind=kind, on_refusal=on_refusal, **options))


async def test_a_rollout_is_scored_as_it_is():
    rig = Rig(method(TrajectorySource.ROLLOUT))
    made = await rig.make()
    assert (made.source, made.text, made.refinement) == (TrajectorySource.ROLLOUT, "wrong", None)
    assert rig.teacher.scored[0][0].tolist() == PROMPT_IDS.tolist()
    assert rig.stages == ["rollout", "score"]
    assert isinstance(made.target, TeacherHidden)


async def test_a_refinement_is_trained_on_token_for_token():
    rig = Rig(method())
    made = await rig.make()
    assert (made.source, made.text) == (TrajectorySource.REFINED, "right")
    assert made.token_ids.tolist() == completion("right").token_ids.tolist()
    assert made.teacher_context_ids.tolist() == REFINE_IDS.tolist()
    assert rig.stages == ["rollout", "refine", "score"]


@pytest.mark.parametrize("privileged", [False, True])
async def test_the_teacher_s_own_answer_needs_no_rollout(privileged: bool):
    rig = Rig(method(TrajectorySource.TEACHER, privileged=privileged, divergence=Divergence.NLL))
    made = await rig.make()
    shown = PRIVILEGED_IDS if privileged else PROMPT_IDS
    assert rig.teacher.refined[0].tolist() == shown.tolist()
    assert (made.rollout, made.text, made.policy_version_min) == (None, "right", None)
    assert rig.generator.asked == []
    assert rig.stages == ["refine"]


async def test_a_reference_asks_nobody():
    rig = Rig(method(TrajectorySource.REFERENCE, divergence=Divergence.NLL))
    made = await rig.make()
    assert made.token_ids.tolist() == [*map(ord, "right"), END]
    assert (made.target, made.rollout, rig.stages) == (None, None, [])
    assert made.grade is not None and made.grade.correct
    rig.prompts.max_trained = 3
    assert (await rig.make()).reason is RejectReason.PROMPT_TOO_LONG


async def test_a_speculation_is_drafted_and_scored():
    rig = Rig(method(TrajectorySource.SPECULATIVE), rollout="right")
    made = await rig.make()
    assert (made.source, made.text, made.num_kept) == (TrajectorySource.SPECULATIVE, "right", 5)
    assert (made.rollout, made.policy_version_min) == (None, 0)
    assert rig.stages == ["rollout", "score"]


async def test_without_a_divergence_nothing_is_scored():
    made = await Rig(method(divergence=Divergence.NLL)).make()
    assert (made.outcome, made.target) == (Outcome.CONSUMED, None)


async def test_the_learner_scores_by_itself_what_it_is_given_the_context_of():
    rig = Rig(method(), score=ScoreMethod.LEARNER)
    made = await rig.make()
    assert isinstance(made.target, DeferredTarget)
    assert made.target.context_ids.tolist() == REFINE_IDS.tolist()
    assert rig.teacher.scored == []


@pytest.mark.parametrize(("support", "top_k"), [(Support.TOP_K, 3), (Support.SAMPLED, 0)])
async def test_fused_targets_come_with_the_rewrite(support: Support, top_k: int):
    rig = Rig(method(support=support, top_k=3), score=ScoreMethod.FUSED)
    made = await rig.make()
    assert isinstance(made.target, TopKTargets)
    assert made.target.topk_ids.shape == (5, top_k)
    assert (rig.teacher.asked_top_k, rig.teacher.scored) == ([top_k], [])
    assert rig.stages == ["rollout", "refine"]


async def test_what_was_not_generated_under_its_context_is_scored_by_a_pass_of_its_own():
    refuses = gated(RefineGate.ACCEPT_CORRECT, OnRefusal.ROLLOUT)
    rig = Rig(replace(refuses, support=Support.TOP_K, top_k=3), score=ScoreMethod.FUSED)
    rig.teacher.rewrite = lambda: completion("wrong too")
    made = await rig.make()
    assert made.source is TrajectorySource.ROLLOUT
    assert rig.teacher.scored[0][0].tolist() == PROMPT_IDS.tolist()


GATES = [
    (RefineGate.ALL, "right", "wrong", RejectReason.NONE),
    (RefineGate.FAILED_ONLY, "right", "right", RejectReason.ROLLOUT_CORRECT),
    (RefineGate.FAILED_ONLY, "wrong", "wrong", RejectReason.NONE),
    (RefineGate.ACCEPT_CORRECT, "wrong", "bad", RejectReason.REFINEMENT_WRONG),
    (RefineGate.ACCEPT_CORRECT, "wrong", "right", RejectReason.NONE),
    (RefineGate.ACCEPT_NOT_WORSE, "right", "bad", RejectReason.REFINEMENT_WORSE),
    (RefineGate.ACCEPT_NOT_WORSE, "wrong", "bad", RejectReason.NONE),
    (RefineGate.ACCEPT_NOT_WORSE, "right", "right", RejectReason.NONE),
]


@pytest.mark.parametrize(("kind", "rollout", "rewrite", "reason"), GATES)
@pytest.mark.parametrize("on_refusal", list(OnRefusal))
async def test_gates(
    kind: RefineGate, rollout: str, rewrite: str, reason: RejectReason, on_refusal: OnRefusal
):
    if kind is RefineGate.ALL and on_refusal is OnRefusal.ROLLOUT:
        on_refusal = OnRefusal.NOTHING  # refused by the configuration: the gate lets all through
    rig = Rig(gated(kind, on_refusal), rollout=rollout)
    rig.teacher.rewrite = lambda: completion(rewrite)
    made = await rig.make()
    assert made.gate_reason is reason
    # What the teacher wrote is kept; a gate that looks at the rollout alone lets it write nothing.
    asked = reason is not RejectReason.ROLLOUT_CORRECT
    assert (made.refinement is not None) is bool(rig.teacher.refined) is asked
    if reason is RejectReason.NONE:
        assert (made.source, made.text, made.outcome) == (
            TrajectorySource.REFINED, rewrite, Outcome.CONSUMED,
        )  # fmt: skip
    elif on_refusal is OnRefusal.ROLLOUT:
        assert (made.source, made.text, made.outcome) == (
            TrajectorySource.ROLLOUT, rollout, Outcome.CONSUMED,
        )  # fmt: skip
        assert made.teacher_context is TeacherContext.PROMPT
    else:
        assert (made.outcome, made.reason, made.target) == (Outcome.REJECTED, reason, None)


@pytest.mark.parametrize(
    ("student_logprob", "reason"), [(-1.4, RejectReason.NONE), (-1.6, RejectReason.LOW_SUPPORT)]
)
async def test_min_support_compares_mean_student_logprobs(student_logprob: float, reason: RejectReason):
    # The rollout's mean is -0.5; a fall of 1.0 is let through, so -1.5 is the border.
    rig = Rig(gated(RefineGate.MIN_SUPPORT, min_support=1.0))
    rig.generator.student_logprob = student_logprob
    assert (await rig.make()).gate_reason is reason


BROKEN: list[tuple[Callable[[Rig], None], RejectReason]] = [
    (lambda rig: setattr(rig.prompts, "too_long", (TeacherContext.REFINE,)), RejectReason.PROMPT_TOO_LONG),
    (lambda rig: _rewrites(rig, "right", stop=StopReason.LENGTH), RejectReason.REFINE_TRUNCATED),
    (lambda rig: _rewrites(rig, "  "), RejectReason.EMPTY),
    (lambda rig: _rewrites(rig, "right", logprob=float("nan")), RejectReason.NON_FINITE),
    (lambda rig: _rewrites(rig, "right", stop=StopReason.ABORT), RejectReason.ABORTED),
]


def _rewrites(rig: Rig, text: str, *, stop: StopReason = StopReason.STOP, logprob: float = -0.5) -> None:
    rig.teacher.rewrite = lambda: completion(text, stop=stop, logprob=logprob)


@pytest.mark.parametrize(("breaks", "reason"), BROKEN)
async def test_a_broken_refinement_is_rejected_or_its_rollout_trained_on(
    breaks: Callable[[Rig], None], reason: RejectReason
):
    rig = Rig(method())
    breaks(rig)
    made = await rig.make()
    assert (made.outcome, made.reason, made.gate_reason) == (Outcome.REJECTED, reason, reason)
    instead = Rig(gated(RefineGate.ACCEPT_NOT_WORSE, OnRefusal.ROLLOUT))
    breaks(instead)
    made = await instead.make()
    assert (made.outcome, made.text, made.gate_reason) == (Outcome.CONSUMED, "wrong", reason)


async def test_a_poisoned_rollout_is_rejected_before_a_rewrite_is_asked_for():
    rig = Rig(gated(RefineGate.ACCEPT_CORRECT, OnRefusal.ROLLOUT))

    async def poisoned(prompt: Prompt, sampling: SamplingConfig) -> Completion:
        return completion("wrong", logprob=float("nan"))

    rig.generator.generate = poisoned  # type: ignore[method-assign]
    made = await rig.make()
    assert (made.outcome, made.reason) == (Outcome.REJECTED, RejectReason.NON_FINITE)
    assert rig.teacher.refined == []


def spliced(locator: Locator, **options: float) -> MethodConfig:
    return method(TrajectorySource.SPLICED, splice=SpliceConfig(locator=locator, **options))


async def test_a_splice_keeps_the_good_beginning_and_lets_the_teacher_go_on():
    rig = Rig(spliced(Locator.GRADER), rollout="riXht")
    rig.teacher.rewrite = lambda: completion("ght")
    made = await rig.make()
    kept = completion("ri").token_ids.tolist()
    assert rig.teacher.refined[0].tolist() == [*REFINE_IDS.tolist(), *kept], "kept tokens open the answer"
    assert (made.text, made.num_kept) == ("right", 2)
    assert made.token_ids[:2].tolist() == kept
    assert made.grade is not None and made.grade.correct


async def test_a_right_rollout_is_kept_whole_and_the_teacher_not_asked():
    rig = Rig(spliced(Locator.GRADER), rollout="right")
    made = await rig.make()
    assert (made.text, made.num_kept, rig.teacher.refined) == ("right", 5, [])
    assert made.outcome is Outcome.CONSUMED


async def test_a_splice_at_the_first_improbable_token():
    rig = Rig(spliced(Locator.TEACHER_PROBABILITY, threshold=0.05), rollout="riXht")
    rig.teacher.token_logprob = lambda index: -9.0 if index == 2 else -0.1
    rig.teacher.rewrite = lambda: completion("ght")
    made = await rig.make()
    assert (made.text, made.num_kept) == ("right", 2)


async def test_first_difference_keeps_the_rewrite_and_counts_what_is_shared():
    rig = Rig(spliced(Locator.FIRST_DIFFERENCE), rollout="riXht")
    made = await rig.make()
    assert (made.text, made.num_kept) == ("right", 2)
    assert rig.teacher.refined[0].tolist() == REFINE_IDS.tolist()


async def test_a_splice_without_room_for_the_rest_is_rejected():
    rig = Rig(spliced(Locator.TEACHER_PROBABILITY), rollout="x" * 16)
    rig.teacher.token_logprob = lambda index: -0.1

    async def cut(prompt: Prompt, sampling: SamplingConfig) -> Completion:
        return completion("x" * 16, stop=StopReason.LENGTH)

    rig.generator.generate = cut  # type: ignore[method-assign]
    made = await rig.make()
    assert (made.outcome, made.reason) == (Outcome.REJECTED, RejectReason.REFINE_TRUNCATED)


def test_the_grader_is_the_default_locator():
    assert isinstance(
        make_locator(SpliceConfig(), task=StepTask(), teacher=FakeTeacher(), tokenizer=Tokenizer()),  # type: ignore[arg-type]
        GraderLocator,
    )


async def test_a_context_without_room_rejects_the_trajectory():
    rig = Rig(method(teacher_context=TeacherContext.PROMPT))
    rig.prompts.too_long = (TeacherContext.PROMPT,)
    made = await rig.make()
    assert (made.outcome, made.reason) == (Outcome.REJECTED, RejectReason.PROMPT_TOO_LONG)
    assert rig.teacher.scored == []
    assert not np.isnan(made.rollout.completion.logprobs).any()  # type: ignore[union-attr]


async def test_poisoned_targets_reject_the_trajectory():
    rig = Rig(method())

    async def poisoned(context_ids: IntArray, token_ids: IntArray) -> TeacherHidden:
        return TeacherHidden(hidden=np.full((len(token_ids), 3), np.nan, dtype=np.float32))

    rig.teacher.score = poisoned  # type: ignore[method-assign]
    made = await rig.make()
    assert (made.outcome, made.reason, made.target) == (Outcome.REJECTED, RejectReason.NON_FINITE, None)
    assert made.text == "right", "what was made is kept"


@pytest.mark.parametrize(
    ("score", "room", "reason"),
    [
        (ScoreMethod.PREFILL, 7, RejectReason.NONE),  # 2 of the prompt and 5 of the rewrite
        (ScoreMethod.PREFILL, 6, RejectReason.PROMPT_TOO_LONG),
        (ScoreMethod.HIDDEN, 6, RejectReason.NONE),
    ],
)
async def test_an_engine_is_not_asked_to_read_more_than_it_can(
    score: ScoreMethod, room: int, reason: RejectReason
):
    rig = Rig(method(support=Support.TOP_K), score=score)
    rig.prompts.max_scored = room
    made = await rig.make()
    assert made.reason is reason
    assert len(rig.teacher.scored) == (reason is RejectReason.NONE)


async def test_support_that_is_no_number_or_cannot_be_asked_for_is_refused():
    rig = Rig(gated(RefineGate.MIN_SUPPORT))
    rig.generator.student_logprob = float("nan")
    assert (await rig.make()).gate_reason is RejectReason.NON_FINITE
    rig = Rig(gated(RefineGate.MIN_SUPPORT))
    rig.prompts.max_trained = 6  # 1 + 5 tokens, and none to spare
    assert (await rig.make()).gate_reason is RejectReason.PROMPT_TOO_LONG


SPLICES = [
    (Locator.GRADER, "ght", 2),
    (Locator.TEACHER_PROBABILITY, "ght", 2),
    (Locator.FIRST_DIFFERENCE, "right", 0),
]


@pytest.mark.parametrize("on_refusal", list(OnRefusal))
@pytest.mark.parametrize(("locator", "written", "num_opening"), SPLICES)
async def test_a_refused_splice_can_be_told_from_its_record(
    locator: Locator, written: str, num_opening: int, on_refusal: OnRefusal
):
    gate = RefineGateConfig(kind=RefineGate.MIN_SUPPORT, on_refusal=on_refusal)
    rig = Rig(replace(spliced(locator), refine_gate=gate), rollout="riXht")
    rig.generator.student_logprob = -9.0
    rig.teacher.token_logprob = lambda index: -9.0 if index == 2 else -0.1
    rig.teacher.rewrite = lambda: completion(written)
    made = await rig.make()
    assert made.gate_reason is RejectReason.LOW_SUPPORT
    assert made.refinement is not None and made.refinement.completion.text == written
    if on_refusal is OnRefusal.ROLLOUT:
        assert (made.source, made.text) == (TrajectorySource.ROLLOUT, "riXht")
        assert made.teacher_context is TeacherContext.PROMPT
        rewrite = [*made.token_ids[: made.num_kept], *made.refinement.completion.token_ids]
        assert "".join(map(chr, rewrite)) == "right"
        assert made.num_kept == num_opening
    else:
        assert (made.outcome, made.source, made.text) == (
            Outcome.REJECTED, TrajectorySource.SPLICED, "right",
        )  # fmt: skip


async def test_a_gate_judges_a_splice_as_a_whole():
    gate = RefineGateConfig(kind=RefineGate.ACCEPT_CORRECT)
    rig = Rig(replace(spliced(Locator.GRADER), refine_gate=gate), rollout="riXht")
    rig.teacher.rewrite = lambda: completion("ght")
    assert (await rig.make()).outcome is Outcome.CONSUMED
    rig.teacher.rewrite = lambda: completion("right")
    assert (await rig.make()).gate_reason is RejectReason.REFINEMENT_WRONG


async def test_nothing_is_counted_as_written_where_a_rollout_is_kept_whole():
    made = await Rig(spliced(Locator.GRADER), rollout="right").make()
    assert made.refinement is not None and len(made.refinement.completion.token_ids) == 0
    assert made.refinement.grade.correct


@pytest.mark.parametrize("value", [-9.0, float("nan")])
async def test_a_teacher_probability_that_is_no_number_is_not_kept(value: float):
    rig = Rig(spliced(Locator.TEACHER_PROBABILITY), rollout="riXht")
    rig.teacher.token_logprob = lambda index: value if index == 2 else -0.1
    rig.teacher.rewrite = lambda: completion("ght")
    assert (await rig.make()).num_kept == 2


async def test_a_locator_that_asks_the_teacher_needs_room_for_context_and_rollout():
    rig = Rig(spliced(Locator.TEACHER_PROBABILITY), rollout="riXht")
    rig.prompts.max_scored = 5  # 1 + 5
    assert (await rig.make()).reason is RejectReason.PROMPT_TOO_LONG
    rig = Rig(spliced(Locator.GRADER), rollout="riXht")
    rig.prompts.max_scored = 5
    assert (await rig.make()).outcome is Outcome.CONSUMED


async def test_a_good_rollout_that_was_cut_off_is_continued():
    rig = Rig(spliced(Locator.TEACHER_PROBABILITY))

    async def cut(prompt: Prompt, sampling: SamplingConfig) -> Completion:
        return completion("rig", stop=StopReason.LENGTH)

    rig.generator.generate = cut  # type: ignore[method-assign]
    rig.teacher.rewrite = lambda: completion("ht")
    made = await rig.make()
    assert (made.text, made.num_kept, made.outcome) == ("right", 3, Outcome.CONSUMED)


async def test_the_teacher_s_answer_comes_with_its_targets_and_is_cut_by_no_context():
    answered = method(TrajectorySource.TEACHER, support=Support.TOP_K, top_k=3)
    rig = Rig(answered, score=ScoreMethod.FUSED)
    made = await rig.make()
    assert isinstance(made.target, TopKTargets)
    assert (rig.teacher.scored, rig.stages) == ([], ["refine"])
    rig.prompts.too_long = (TeacherContext.PROMPT,)
    assert (await rig.make()).reason is RejectReason.PROMPT_TOO_LONG


async def test_an_aborted_or_empty_speculation_is_rejected():
    rig = Rig(method(TrajectorySource.SPECULATIVE))

    async def aborted(prompt: Prompt, sampling: SamplingConfig) -> Completion:
        return completion("", stop=StopReason.ABORT)

    rig.generator.generate = aborted  # type: ignore[method-assign]
    made = await rig.make()
    assert (made.outcome, made.reason) == (Outcome.REJECTED, RejectReason.ABORTED)


async def test_a_token_that_the_tokenizer_does_not_have_rejects_the_trajectory():
    rig = Rig(method(TrajectorySource.ROLLOUT), rollout="a" + chr(1_000))
    made = await rig.make()
    assert (made.outcome, made.reason) == (Outcome.REJECTED, RejectReason.UNKNOWN_TOKEN)
    assert rig.teacher.scored == []


async def test_a_prompt_that_is_too_long_rejects_unless_the_rollout_is_broken():
    rig = Rig(method(), prompts=Prompts(too_long=(TeacherContext.REFINE,)))
    assert (await rig.make()).reason is RejectReason.PROMPT_TOO_LONG

    async def aborted(prompt: Prompt, sampling: SamplingConfig) -> Completion:
        return completion("wrong", stop=StopReason.ABORT)

    rig.generator.generate = aborted  # type: ignore[method-assign]
    assert (await rig.make()).reason is RejectReason.ABORTED
