"""Measures what the testbed's models can do, on held-out problems."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from trd_ray.tasks.arithmetic import ArithmeticTask, Split, generate_problems
from trd_ray.tasks.arithmetic.problems import parse_problem
from trd_ray.templates import TemplateName
from trd_ray.testbed.corpus import make_user_message, spoil
from trd_ray.testbed.model import load_model
from trd_ray.testbed.paths import STUDENT, TEACHER, WEAK_STUDENT
from trd_ray.testbed.sampling import SamplerSettings, sample
from trd_ray.testbed.tokenizer import build_tokenizer
from trd_ray.types import Grade, Problem

_TASK = ArithmeticTask()


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """A share that was counted."""

    num_hits: int
    num_total: int

    @property
    def value(self) -> float:
        """The share; nan if nothing was counted."""
        return self.num_hits / self.num_total if self.num_total else math.nan

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson's 95% interval; (0, 1) if nothing was counted."""
        if self.num_total == 0:
            return 0.0, 1.0
        z, n, p = 1.959964, self.num_total, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewriteRates:
    """How one model rewrites the wrong rollouts of one source, at temperature 1."""

    source: str
    """Where the initial solutions come from: a model's folder and the temperature, or `spoiled`."""
    initial_right: Rate
    """Right solutions among all initial ones; only the wrong ones count below."""
    rewritten_right: Rate
    prefix_kept: Rate
    """Rewrites that begin with all the right lines before the first wrong one; of the initial
    solutions that have such lines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorProfile:
    """What the wrong rollouts of the student look like, at temperature 1."""

    well_formed: Rate
    """Wrong rollouts with the right number of well-formed step lines and an answer line."""
    first_wrong_step: tuple[int, ...]
    """Wrong rollouts whose first wrong step is step 0, 1, ...; an answer line counts as the step
    after the last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckReport:
    """All measured figures."""

    teacher_greedy: Rate
    teacher_sampled: Rate
    student_greedy: Rate
    student_sampled: Rate
    weak_student_sampled: Rate
    student_privileged: Rate
    """Student given the reference solution, at temperature 1."""
    teacher_privileged: Rate
    student_errors: ErrorProfile
    teacher_rewrites: tuple[RewriteRates, ...]
    """By the refinement prompt."""
    teacher_privileged_rewrites: tuple[RewriteRates, ...]
    """By the refinement prompt that holds the reference solution."""
    student_privileged_rewrites: tuple[RewriteRates, ...]


CheckProgress = Callable[[str], None]
"""Called with the name of each measurement before it is made."""


def check(models_dir: Path, *, num_problems: int = 1000, seed: int = 0, report: CheckProgress) -> CheckReport:
    """Measure the models in the folders `teacher`, `student` and `weak_student` of `models_dir`.

    Every rate is over the same `num_problems` held-out problems. Takes about 3 minutes of one core
    with the default.
    """
    bench = _Bench(
        problems=tuple(generate_problems(seed=seed, split=Split.HELD_OUT, num=num_problems)),
        tokenizer=build_tokenizer(),
        seed=seed,
        report=report,
    )
    teacher, student, weak = (load_model(models_dir / name) for name in (TEACHER, STUDENT, WEAK_STUDENT))
    plain, privileged = TemplateName.STUDENT, TemplateName.PRIVILEGED
    rollouts = bench.answer("student, sampled", student, plain)
    weak_rollouts = bench.answer("weak student, sampled", weak, plain)
    rng = Random(f"check/{seed}")
    sources = {
        "student T=1": rollouts,
        "student T=1.5": bench.answer("student, hot", student, plain, temperature=1.5),
        "weak_student T=1": weak_rollouts,
        "weak_student T=1.5": bench.answer("weak student, hot", weak, plain, temperature=1.5),
        "spoiled": [spoil(rng, parse_problem(p.problem)) for p in bench.problems],
    }
    rewrite, rewrite_privileged = TemplateName.REFINE, TemplateName.REFINE_PRIVILEGED
    return CheckReport(
        teacher_greedy=bench.rate("teacher, greedy", teacher, plain, temperature=0.0),
        teacher_sampled=bench.rate("teacher, sampled", teacher, plain),
        student_greedy=bench.rate("student, greedy", student, plain, temperature=0.0),
        student_sampled=bench.count_right(rollouts),
        weak_student_sampled=bench.count_right(weak_rollouts),
        student_privileged=bench.rate("student, privileged", student, privileged),
        teacher_privileged=bench.rate("teacher, privileged", teacher, privileged),
        student_errors=bench.profile_errors(rollouts),
        teacher_rewrites=bench.rewrite("teacher", teacher, rewrite, sources),
        teacher_privileged_rewrites=bench.rewrite("teacher", teacher, rewrite_privileged, sources),
        student_privileged_rewrites=bench.rewrite("student", student, rewrite_privileged, sources),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bench:
    """The problems of one check, and the ways to measure a model on them."""

    problems: tuple[Problem, ...]
    tokenizer: PreTrainedTokenizerFast
    seed: int
    report: CheckProgress

    def answer(
        self,
        title: str,
        model: Qwen3ForCausalLM,
        template: TemplateName,
        *,
        temperature: float = 1.0,
        initial_solutions: Sequence[str] | None = None,
    ) -> list[str]:
        """One answer to each problem."""
        self.report(title)
        initial = initial_solutions if initial_solutions is not None else [""] * len(self.problems)
        users = [
            make_user_message(template, parse_problem(problem.problem), initial_solution=text)
            for problem, text in zip(self.problems, initial, strict=True)
        ]
        settings = SamplerSettings(temperature=temperature, seed=self.seed)
        return [s.text for s in sample(model, self.tokenizer, users, settings)]

    def grade(self, texts: Sequence[str]) -> list[Grade]:
        """One grade a problem."""
        return [_TASK.grade(problem, text) for problem, text in zip(self.problems, texts, strict=True)]

    def count_right(self, texts: Sequence[str]) -> Rate:
        """Share of right solutions."""
        grades = self.grade(texts)
        return Rate(num_hits=sum(g.correct for g in grades), num_total=len(grades))

    def rate(
        self, title: str, model: Qwen3ForCausalLM, template: TemplateName, *, temperature: float = 1.0
    ) -> Rate:
        """Share of right answers of a model."""
        return self.count_right(self.answer(title, model, template, temperature=temperature))

    def profile_errors(self, texts: Sequence[str]) -> ErrorProfile:
        """What the wrong ones among `texts` look like."""
        wrong = [
            (grade, len(parse_problem(problem.problem)) - 1)
            for problem, grade in zip(self.problems, self.grade(texts), strict=True)
            if not grade.correct
        ]
        well_formed = sum(g.num_steps == steps and g.answer is not None for g, steps in wrong)
        counts = Counter(grade.first_wrong_step for grade, _ in wrong)
        return ErrorProfile(
            well_formed=Rate(num_hits=well_formed, num_total=len(wrong)),
            first_wrong_step=tuple(counts[i] for i in range(max((s for _, s in wrong), default=-1) + 1)),
        )

    def rewrite(
        self,
        who: str,
        model: Qwen3ForCausalLM,
        template: TemplateName,
        sources: dict[str, list[str]],
    ) -> tuple[RewriteRates, ...]:
        """How a model rewrites the wrong solutions of each source."""
        return tuple(
            self._rewrite_rates(
                source,
                initial,
                self.answer(f"{who}, {template} of {source}", model, template, initial_solutions=initial),
            )
            for source, initial in sources.items()
        )

    def _rewrite_rates(self, source: str, initial: Sequence[str], rewritten: Sequence[str]) -> RewriteRates:
        before, after = self.grade(initial), self.grade(rewritten)
        wrong = [i for i, grade in enumerate(before) if not grade.correct]
        # A wrong solution has a first wrong step, and `or 0` only tells that to the type checker.
        with_prefix = [i for i in wrong if (before[i].first_wrong_step or 0) > 0]
        kept = 0
        for i in with_prefix:
            num_right = before[i].first_wrong_step or 0
            kept += _lines(initial[i])[:num_right] == _lines(rewritten[i])[:num_right]
        return RewriteRates(
            source=source,
            initial_right=Rate(num_hits=len(before) - len(wrong), num_total=len(before)),
            rewritten_right=Rate(num_hits=sum(after[i].correct for i in wrong), num_total=len(wrong)),
            prefix_kept=Rate(num_hits=kept, num_total=len(with_prefix)),
        )


def _lines(text: str) -> list[str]:
    return text.strip(" \n\r\t").split("\n")
