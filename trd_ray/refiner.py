"""From a rollout to what is trained on in its place: rewritten as a whole, or from its first bad token on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np

from trd_ray.choices import OnRefusal, RefineGate
from trd_ray.config import MethodConfig, SamplingConfig
from trd_ray.interfaces import Generator, Teacher
from trd_ray.locate import Evidence, FailureLocator
from trd_ray.outcomes import RejectReason
from trd_ray.prompting import PromptBuilder
from trd_ray.refine_gate import Candidate, refuse
from trd_ray.refinement import PromptTooLong, reject_rollout, reject_teacher_text
from trd_ray.seeds import derive_seed
from trd_ray.trajectories import make, never_made, of_rollout
from trd_ray.types import (
    Completion,
    Grade,
    IntArray,
    Problem,
    Refinement,
    RefinePrompt,
    Rollout,
    StopReason,
    TopKTargets,
    Trajectory,
    TrajectorySource,
)

Grader = Callable[[Problem, str], Awaitable[Grade]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rewrite:
    """A refinement with the tokens that would be trained on."""

    refinement: Refinement
    token_ids: IntArray
    text: str
    num_kept: int
    targets: TopKTargets | None
    reason: RejectReason
    """Why it is broken; `NONE` if it is not."""

    @property
    def num_opening(self) -> int:
        """Tokens of the rollout that stand before what the teacher wrote; 0 where it wrote all anew."""
        return len(self.token_ids) - len(self.refinement.completion.token_ids)


@dataclass(frozen=True, kw_only=True)
class Refiner:
    """Makes refined and spliced trajectories from rollouts."""

    generator: Generator
    teacher: Teacher
    prompts: PromptBuilder
    method: MethodConfig
    sampling: SamplingConfig
    max_rollout_tokens: int
    """That were asked for."""
    locator: FailureLocator | None
    grade: Grader
    fused: bool
    """Take the teacher's log-probabilities while it generates."""

    async def refine(self, rollout: Rollout) -> Trajectory:
        """The trajectory that comes of a rollout; broken and refused refinements are outcomes of it."""
        source, context = self.method.trajectory, self.method.teacher_context
        broken = reject_rollout(rollout.completion, max_tokens=self.max_rollout_tokens, is_trajectory=False)
        if broken is not RejectReason.NONE:
            return never_made(rollout.prompt, source=source, context=context, reason=broken, rollout=rollout)
        if self.method.refine_gate.kind is RefineGate.FAILED_ONLY and rollout.grade.correct:
            # Known before the teacher has spent a token on it.
            return self._refused(rollout, None, RejectReason.ROLLOUT_CORRECT)
        prompt = self.prompts.refine(rollout)
        if isinstance(prompt, PromptTooLong):
            return self._refused(rollout, None, RejectReason.PROMPT_TOO_LONG)
        if source is TrajectorySource.SPLICED:
            rewrite = await self._splice(rollout, prompt)
        else:
            rewrite = await self._rewrite(rollout, prompt)
        if isinstance(rewrite, RejectReason):
            return self._refused(rollout, None, rewrite)
        reason = rewrite.reason
        if reason is RejectReason.NONE:
            reason = await self._gate(rollout, rewrite)
        if reason is not RejectReason.NONE:
            return self._refused(rollout, rewrite, reason)
        return self._trained(rollout, rewrite, prompt)

    async def _gate(self, rollout: Rollout, rewrite: _Rewrite) -> RejectReason:
        gate = self.method.refine_gate
        num_tokens = len(rollout.prompt.token_ids) + len(rewrite.token_ids)
        # An engine that scores samples a token too, which is dropped: hence at least one must be free.
        if gate.kind is RefineGate.MIN_SUPPORT and num_tokens >= self.prompts.max_trained:
            return RejectReason.PROMPT_TOO_LONG
        candidate = Candidate(
            rollout=rollout,
            token_ids=rewrite.token_ids,
            text=rewrite.text,
            grade=rewrite.refinement.grade,
        )
        return await refuse(candidate, gate=gate, generator=self.generator)

    def _teacher_can_read(self, context_ids: IntArray, token_ids: IntArray) -> bool:
        """Not asked of a locator that asks no teacher: it needs no room."""
        needs = self.locator is not None and self.locator.asks_teacher
        return not needs or len(context_ids) + len(token_ids) <= self.prompts.max_scored

    async def _rewrite(self, rollout: Rollout, prompt: RefinePrompt) -> _Rewrite:
        answer = await self.teacher.generate(
            prompt.token_ids,
            self.sampling,
            derive_seed(rollout.prompt.seed, "refine"),
            top_k=self.method.num_targets if self.fused else None,
        )
        completion = answer.completion
        grade = await self.grade(rollout.prompt.problem, completion.text)
        return _Rewrite(
            refinement=Refinement(prompt=prompt, completion=completion, grade=grade),
            token_ids=completion.token_ids,
            text=completion.text,
            num_kept=0,
            targets=answer.targets,
            reason=self._judge(completion, completion.text, max_tokens=self.sampling.max_tokens),
        )

    async def _splice(self, rollout: Rollout, prompt: RefinePrompt) -> _Rewrite | RejectReason:
        """Keep the good beginning of the rollout, token for token, and let the teacher go on from there."""
        assert self.locator is not None  # the method splices
        rewrite = await self._rewrite(rollout, prompt) if self.locator.needs_rewrite else None
        context = self.prompts.score_context(
            rollout.prompt,
            prompt,
            context=self.method.teacher_context,
            num_tokens=len(rollout.completion.token_ids),
        )
        if isinstance(context, PromptTooLong):
            return RejectReason.PROMPT_TOO_LONG
        if rewrite is None and not self._teacher_can_read(context, rollout.completion.token_ids):
            return RejectReason.PROMPT_TOO_LONG
        rewrite_ids = None if rewrite is None else rewrite.token_ids
        bad = await self.locator.first_bad_token(
            rollout, Evidence(context_ids=context, rewrite_ids=rewrite_ids)
        )
        num_kept = len(rollout.completion.token_ids) if bad is None else bad
        if rewrite is not None:
            return replace(rewrite, num_kept=num_kept)
        return await self._continue(rollout, prompt, num_kept=num_kept, all_good=bad is None)

    async def _continue(
        self, rollout: Rollout, prompt: RefinePrompt, *, num_kept: int, all_good: bool
    ) -> _Rewrite | RejectReason:
        """Kept tokens open the teacher's answer. A rollout that is good to its end is left as it is; one
        that is good and was cut off by its budget is continued like any other."""
        kept = rollout.completion.token_ids[:num_kept]
        if all_good and rollout.completion.stop_reason is StopReason.STOP:
            nothing = replace(
                rollout.completion, token_ids=kept[:0], logprobs=rollout.completion.logprobs[:0], text=""
            )
            whole = Refinement(prompt=prompt, completion=nothing, grade=rollout.grade)
            return _Rewrite(
                refinement=whole, token_ids=kept, text=rollout.completion.text, num_kept=num_kept,
                targets=None, reason=RejectReason.NONE,
            )  # fmt: skip
        budget = self.sampling.max_tokens - num_kept
        if budget < 1:
            return RejectReason.REFINE_TRUNCATED
        answer = await self.teacher.generate(
            np.concatenate([prompt.token_ids, kept]),
            replace(self.sampling, max_tokens=budget),
            derive_seed(rollout.prompt.seed, "splice"),
        )
        completion = answer.completion
        token_ids = np.concatenate([kept, completion.token_ids])
        text = self.prompts.text(token_ids)
        grade = await self.grade(rollout.prompt.problem, text)
        return _Rewrite(
            refinement=Refinement(prompt=prompt, completion=completion, grade=grade),
            token_ids=token_ids,
            text=text,
            num_kept=num_kept,
            targets=None,
            reason=self._judge(completion, text, max_tokens=budget),
        )

    def _judge(self, completion: Completion, text: str, *, max_tokens: int) -> RejectReason:
        """What is wrong with what the teacher wrote; `text` may begin with kept tokens."""
        broken = reject_teacher_text(replace(completion, text=text), max_tokens=max_tokens)
        if broken is RejectReason.NONE and self.prompts.echoes(completion.text):
            return RejectReason.ECHO
        return broken

    def _trained(self, rollout: Rollout, rewrite: _Rewrite, prompt: RefinePrompt) -> Trajectory:
        return make(
            rollout.prompt,
            source=self.method.trajectory,
            token_ids=rewrite.token_ids,
            text=rewrite.text,
            grade=rewrite.refinement.grade,
            context=self.method.teacher_context,
            context_ids=self.prompts.score_context(
                rollout.prompt,
                prompt,
                context=self.method.teacher_context,
                num_tokens=len(rewrite.token_ids),
            ),
            rollout=rollout,
            refinement=rewrite.refinement,
            num_kept=rewrite.num_kept,
            target=rewrite.targets,
        )

    def _refused(self, rollout: Rollout, rewrite: _Rewrite | None, reason: RejectReason) -> Trajectory:
        """What is left of a rollout whose refinement is broken or refused: itself, or a rejection."""
        refinement = None if rewrite is None else rewrite.refinement
        if self.method.refine_gate.on_refusal is OnRefusal.ROLLOUT and len(rollout.completion.token_ids):
            context = self.method.refused_context
            context_ids = self.prompts.score_context(
                rollout.prompt, None, context=context, num_tokens=len(rollout.completion.token_ids)
            )
            return of_rollout(
                rollout,
                context=context,
                context_ids=context_ids,
                reason=RejectReason.NONE,
                refinement=refinement,
                gate_reason=reason,
                num_kept=0 if rewrite is None else rewrite.num_opening,
            )
        source, context = self.method.trajectory, self.method.teacher_context
        if rewrite is None:
            return never_made(
                rollout.prompt, source=source, context=context, reason=reason, rollout=rollout,
                gate_reason=reason,
            )  # fmt: skip
        return make(
            rollout.prompt,
            source=source,
            token_ids=rewrite.token_ids,
            text=rewrite.text,
            grade=rewrite.refinement.grade,
            context=context,
            context_ids=rewrite.refinement.prompt.token_ids,
            reason=reason,
            rollout=rollout,
            refinement=refinement,
            gate_reason=reason,
            num_kept=rewrite.num_kept,
        )
