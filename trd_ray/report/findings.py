"""The headline numbers, and what a reader of the curves should notice first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trd_ray.evaluation import EvalReport, Interval, mean_interval
from trd_ray.metrics import StepMetrics
from trd_ray.refine_gate import REFUSED_BY_DESIGN
from trd_ray.report.charts import number, percent
from trd_ray.report.data import RunData
from trd_ray.stage_clock import Stage

_TOO_MANY = 0.05
"""Share above which rejections, broken rollouts or truncated answers are worth a word."""
_FALL = 0.1
"""Fall of refined accuracy, from the run's first part to its last, that is worth a word."""


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One number at the top of the page."""

    name: str
    value: str
    before: str = ""
    """Where it started."""
    detail: str = ""
    trend: str = ""
    """`up`, `down` or nothing: only where up is good, and the change is more than chance makes."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One sentence. `level` is `good`, `warn` or `info`."""

    level: str
    text: str


def tenth(
    steps: Sequence[StepMetrics], value: Callable[[StepMetrics], float | None], *, last: bool
) -> float | None:
    """Mean over the first or last tenth of the run; None if it has no value there."""
    part = _part(steps, last=last)
    values = [v for step in part if (v := value(step)) is not None and math.isfinite(v)]
    return math.fsum(values) / len(values) if values else None


def _part(steps: Sequence[StepMetrics], *, last: bool) -> Sequence[StepMetrics]:
    size = max(1, len(steps) // 10)
    return steps[-size:] if last else steps[:size]


def num_rollouts(m: StepMetrics) -> int:
    return _num(m.num_rollout_tokens, m.rollout_length_mean)


def num_refined(m: StepMetrics) -> int:
    return _num(m.num_refined_tokens, m.refined_length_mean)


def _num(num_tokens: int, length_mean: float | None) -> int:
    return round(num_tokens / length_mean) if length_mean else 0


def share_interval(
    steps: Sequence[StepMetrics], share: float, of: Callable[[StepMetrics], int], *, last: bool
) -> Interval:
    """95% interval of a share of a tenth's rollouts, refinements or trajectories, as if each were drawn by
    itself.

    Args:
        of: their number in a step.
    """
    count = sum(of(step) for step in _part(steps, last=last))
    hits = round(share * count)
    return mean_interval([1.0] * hits + [0.0] * (count - hits)) if count else (0.0, 1.0)


def apart(one: Interval, other: Interval) -> bool:
    """Whether two intervals do not overlap."""
    return one[1] < other[0] or other[1] < one[0]


def _interval(interval: Interval) -> str:
    return f"95% interval {percent(interval[0])} to {percent(interval[1])}"


def _trend(before: Interval, after: Interval) -> str:
    return ("up" if after > before else "down") if apart(before, after) else ""


def first_and_last(evals: Sequence[EvalReport]) -> list[tuple[EvalReport, EvalReport]]:
    """For each data set its first and last evaluation."""
    datasets = dict.fromkeys(report.dataset for report in evals)
    by_set = [[report for report in evals if report.dataset == dataset] for dataset in datasets]
    return [(reports[0], reports[-1]) for reports in by_set]


def headlines(run: RunData) -> list[Headline]:
    found = [
        headline for first, last in first_and_last(run.evals) for headline in _eval_headlines(first, last)
    ]
    if not run.steps:
        return found
    for name, value, of in (
        ("Rollout accuracy", lambda m: m.rollout_accuracy, num_rollouts),
        ("Refined accuracy", lambda m: m.refined_accuracy, num_refined),
        ("Trained-on accuracy", lambda m: m.trajectory_accuracy, lambda m: m.num_consumed),
    ):
        before, after = (tenth(run.steps, value, last=last) for last in (False, True))
        if before is not None and after is not None:
            intervals = [
                share_interval(run.steps, share, of, last=last)
                for share, last in ((before, False), (after, True))
            ]
            found.append(
                Headline(
                    name=name, value=percent(after), before=percent(before),
                    detail="first and last tenth of the steps", trend=_trend(*intervals),
                )
            )  # fmt: skip
    seconds = math.fsum(step.step_s for step in run.steps)
    found.append(
        Headline(
            name="Steps", value=f"{run.steps[-1].learner_step:,} of {run.num_steps:,}",
            detail=f"{duration(seconds)} in steps, {number(seconds / len(run.steps))} s each",
        )
    )  # fmt: skip
    tokens = sum(step.num_generated_tokens for step in run.steps)
    found.append(
        Headline(
            name="Generated tokens", value=f"{tokens:,}",
            detail=f"{number(tokens / seconds) if seconds else 0} tokens per second over all steps",
        )
    )  # fmt: skip
    return found


def _eval_headlines(first: EvalReport, last: EvalReport) -> list[Headline]:
    pairs = (
        (f"avg@{last.num_samples}", first.avg_at_k, last.avg_at_k, first.avg_ci95, last.avg_ci95),
        (f"pass@{last.k}", first.pass_at_k, last.pass_at_k, first.pass_ci95, last.pass_ci95),
    )
    return [
        Headline(
            name=f"{name} on {last.dataset}",
            value=percent(after),
            before=percent(before) if first is not last else "",
            detail=_interval(interval),
            trend=_trend(interval_before, interval),
        )
        for name, before, after, interval_before, interval in pairs
    ]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def findings(run: RunData) -> list[Finding]:
    """Most important first: the result, then what looks wrong, then how the run went."""
    results = [_eval_finding(first, last) for first, last in first_and_last(run.evals) if first is not last]
    found: list[Finding] = []
    if run.steps:
        found += _refinement_findings(run.steps)
        found += _health_findings(run.steps)
    for _, last in first_and_last(run.evals):
        if last.truncated_share > _TOO_MANY:
            found.append(
                Finding(
                    level="warn",
                    text=f"{percent(last.truncated_share)} of the last answers on {last.dataset} were "
                    "cut off at the output budget and could not be right. Raise eval.sampling.max_tokens.",
                )
            )
    if run.steps and run.steps[-1].learner_step < run.num_steps:
        found.append(
            Finding(
                level="info",
                text=f"The run is at step {run.steps[-1].learner_step} of {run.num_steps}: it goes on, "
                "or it was stopped. All numbers are so far.",
            )
        )
    return results + sorted(found, key=lambda finding: finding.level != "warn")


def _eval_finding(first: EvalReport, last: EvalReport) -> Finding:
    change = last.avg_at_k - first.avg_at_k
    if not change:
        return Finding(
            level="info",
            text=f"avg@{last.num_samples} on {last.dataset} is {percent(last.avg_at_k)} at step "
            f"{last.learner_step}, as at step {first.learner_step}.",
        )
    is_sure = apart(first.avg_ci95, last.avg_ci95)
    word = "rose" if change > 0 else "fell"
    sure = "do not overlap" if is_sure else "overlap, so this may be chance"
    return Finding(
        level=("good" if change > 0 else "warn") if is_sure else "info",
        text=f"avg@{last.num_samples} on {last.dataset} {word} by {100 * abs(change):.1f} points, "
        f"from {percent(first.avg_at_k)} at step {first.learner_step} "
        f"to {percent(last.avg_at_k)} at step {last.learner_step}. "
        f"The 95% intervals {sure}.",
    )


def _refinement_findings(steps: Sequence[StepMetrics]) -> list[Finding]:
    refined = [step for step in steps if step.refined_accuracy is not None]
    if not refined:
        return []
    found = []
    before = tenth(refined, lambda m: m.refined_accuracy, last=False) or 0.0
    after = tenth(refined, lambda m: m.refined_accuracy, last=True) or 0.0
    rollouts = tenth(refined, lambda m: m.rollout_accuracy, last=True) or 0.0
    better = after > rollouts
    found.append(
        Finding(
            level="info" if better else "warn",
            text=f"In the last tenth of the steps {percent(after)} of the teacher's rewrites are right, and "
            f"{percent(rollouts)} of the rollouts"
            + ("." if better else ": refining does not help there. Check the teacher and its prompt."),
        )
    )
    if before - after > _FALL:
        found.append(
            Finding(
                level="warn",
                text=f"Refined accuracy fell from {percent(before)} to {percent(after)}. The student "
                "trains on ever worse rewrites; compare method.teacher_context=prompt with refine.",
            )
        )
    right = sum((step.rollout_accuracy or 0.0) * step.num_trajectories for step in refined)
    broken = sum(step.flips_right_to_wrong for step in refined)
    if right and broken / right > _TOO_MANY:
        found.append(
            Finding(
                level="warn",
                text=f"The teacher broke {percent(broken / right)} of the right rollouts ({broken:,}). "
                'Look at "right to wrong" below.',
            )
        )
    return found


def _health_findings(steps: Sequence[StepMetrics]) -> list[Finding]:
    found = []
    lost = [step.learner_step for step in steps if not math.isfinite(step.loss)]
    if lost:
        found.append(
            Finding(
                level="warn",
                text=f"The loss is not finite in {len(lost)} steps, first in step {lost[0]}. "
                "Lower the learning rate.",
            )
        )
    total = sum(step.num_trajectories for step in steps)
    reasons = sum((Counter(step.rejected_by_reason) for step in steps), Counter[str]())
    for designed in REFUSED_BY_DESIGN:
        del reasons[designed]
    if reasons.total() > _TOO_MANY * total:
        reason, count = reasons.most_common(1)[0]
        found.append(
            Finding(
                level="warn",
                text=f"{percent(reasons.total() / total)} of the trajectories were rejected, most often as "
                f"{reason} ({count:,} times).",
            )
        )
    shares = {stage: math.fsum(getattr(step, f"{stage}_s") for step in steps) for stage in Stage}
    whole = math.fsum(step.step_s for step in steps)
    if whole:
        stage = max(shares, key=lambda s: shares[s])
        found.append(
            Finding(
                level="info", text=f"Most time goes into the stage {stage}: {percent(shares[stage] / whole)}."
            )
        )
    return found
