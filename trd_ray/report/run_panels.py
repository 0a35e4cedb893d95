"""Which charts the report of one run has, and what their curves are."""

from __future__ import annotations

from collections.abc import Sequence

from trd_ray.activity_records import ActorState
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.report.charts import (
    MAX_BARS,
    MAX_POINTS,
    Panel,
    Value,
    bar_panel,
    by_dataset,
    eval_whiskers,
    fit,
    group,
    line_panel,
    number,
    percent,
    smoothed,
    whole_percent,
)
from trd_ray.report.data import RunData
from trd_ray.report.svg import Series
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage

_EVAL_COLOURS = ("c-eval", "c-grad", "c-learn", "c-sync")
_GATE_COLOURS = ("c-bad", "c-score", "c-grad", "c-eval", "c-rate", "c-learn")


def run_panels(run: RunData) -> list[Panel]:
    """Most important first; panels without a value are left out."""
    panels = [*([eval_panel(run.evals)] if run.evals else [])]
    if run.steps:
        panels += [
            accuracy_panel(run.steps),
            *learner_panels(run.steps),
            *flip_panels(run.steps),
            gate_panel(run.steps),
            *rewrite_panels(run.steps),
            length_panel(run.steps),
            *time_panels(run.steps),
            *role_panels(run.steps),
        ]
    return fit(panels)


def eval_panel(evals: Sequence[EvalReport]) -> Panel:
    whiskers = []
    for (dataset, reports), css in zip(by_dataset(evals).items(), _EVAL_COLOURS * 9, strict=False):
        last = reports[-1]
        whiskers += [
            eval_whiskers(
                f"avg@{last.num_samples} on {dataset}", css, reports,
                lambda r: r.avg_at_k, lambda r: r.avg_ci95,
            ),
            eval_whiskers(
                f"pass@{last.k} on {dataset}", "c-loss" if css == "c-eval" else css, reports,
                lambda r: r.pass_at_k, lambda r: r.pass_ci95,
            ),
        ]  # fmt: skip
    return line_panel(
        "Evaluation",
        "Held-out problems, with the 95% interval over problems.",
        [], whiskers=whiskers, in_percent=True, y_range=(0.0, 1.0),
    )  # fmt: skip


def accuracy_panel(steps: Sequence[StepMetrics]) -> Panel:
    series = smoothed(steps, "rollouts", "c-rollout", lambda m: m.rollout_accuracy)
    series += smoothed(steps, "refinements", "c-refined", lambda m: m.refined_accuracy)
    return line_panel(
        "Accuracy while training",
        "Share of right answers to training problems, rejected trajectories included.",
        series, in_percent=True, y_range=(0.0, 1.0),
    )  # fmt: skip


def learner_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    loss = smoothed(steps, "loss", "c-loss", lambda m: m.loss)
    grad = smoothed(steps, "gradient norm", "c-grad", lambda m: m.grad_norm)
    xs, ys = group(steps, lambda m: m.learning_rate, most=MAX_POINTS)
    rate = [Series(name="learning rate", css="c-rate", xs=xs, ys=ys)]
    panels = []
    if loss:
        note = "The objective, nats a response token."
        panels.append(line_panel("Loss", note, loss, width="third"))
    if grad:
        panels.append(line_panel("Gradient norm", "Global L2 norm before clipping.", grad, width="third"))
    panels.append(line_panel("Learning rate", "As the schedule set it.", rate, width="third"))
    return panels


def flip_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    """Share of trajectories whose correctness the teacher changed; [] if nothing was refined."""
    if all(step.refined_accuracy is None for step in steps):
        return []
    series = smoothed(
        steps, "wrong to right", "c-refined", lambda m: m.flips_wrong_to_right / m.num_trajectories
    )
    series += smoothed(
        steps, "right to wrong", "c-bad", lambda m: m.flips_right_to_wrong / m.num_trajectories
    )
    note = "Share of a step's trajectories that the teacher repairs, and that it breaks."
    return [line_panel("What refining changes", note, series, in_percent=True)]


def gate_panel(steps: Sequence[StepMetrics]) -> Panel:
    """What was trained on and what was not, and why."""
    series = [_share("trained on", "c-refined", steps, lambda m: m.num_consumed / m.num_trajectories)]
    rejected = sorted({reason for step in steps for reason in step.rejected_by_reason})
    series += [
        _share(
            f"rejected: {reason}", css, steps,
            lambda m, reason=reason: m.rejected_by_reason.get(reason, 0) / m.num_trajectories,  # type: ignore[misc]
        )
        for reason, css in zip(rejected, _GATE_COLOURS * 9, strict=False)
    ]  # fmt: skip
    refused: dict[str, int] = {}
    for step in steps:
        for reason, count in step.refinement_refused_by_reason.items():
            refused[reason] = refused.get(reason, 0) + count
    note = "Share of a step's trajectories by how they ended."
    if refused:
        words = ", ".join(f"{reason} {count:,}" for reason, count in sorted(refused.items()))
        note += f" Refinements broken or refused by the gate, over all steps: {words}."
    elif any(step.refined_accuracy is not None for step in steps):
        note += " No refinement was broken or refused by the gate."
    return bar_panel("Gates", note, series, y_format=percent, tick_format=whole_percent, y_high=1.0)


def _share(name: str, css: str, steps: Sequence[StepMetrics], value: Value) -> Series:
    xs, ys = group(steps, value, most=MAX_BARS)
    return Series(name=name, css=css, xs=xs, ys=ys)


def rewrite_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    """How far refinements are from their rollouts, and how likely the student finds them; [] if nothing
    was refined."""
    edits = smoothed(steps, "tokens changed", "c-refined", lambda m: m.edit_distance_mean)
    if not edits:
        return []
    kept = smoothed(steps, "tokens kept", "c-rollout", lambda m: m.kept_share_mean)
    note = "Token edits from rollout to refinement over the longer one's length"
    note += "; share of a spliced answer that is the rollout's." if kept else "."
    panels = [line_panel("How much is rewritten", note, [*edits, *kept], in_percent=True)]
    support = smoothed(steps, "support", "c-eval", lambda m: m.support_mean)
    if support:
        note = "Mean student logprob of what is trained on less that of its rollouts, nats a token."
        panels.append(line_panel("Support", note, support))
    return panels


def length_panel(steps: Sequence[StepMetrics]) -> Panel:
    series = smoothed(steps, "rollouts", "c-rollout", lambda m: m.rollout_length_mean)
    series += smoothed(steps, "refinements", "c-refined", lambda m: m.refined_length_mean)
    return line_panel("Length", "Mean tokens of an answer.", series)


def time_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    series = []
    for stage, css in _STAGE_COLOURS.items():
        xs, ys = group(steps, lambda m, key=f"{stage}_s": getattr(m, key), most=MAX_BARS)  # type: ignore[misc]
        series.append(Series(name=str(stage), css=css, xs=xs, ys=ys))
    note = "Seconds by stage. Where stages overlap, each instant is shared among them by samples."
    times = bar_panel("Time of a step", note, series, y_format=lambda v: f"{number(v)} s", tick_format=number)
    speed = smoothed(steps, "tokens per second", "c-eval", lambda m: m.tokens_per_s)
    return [times, line_panel("Throughput", "Generated tokens per second of the whole step.", speed)]


def role_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    """What each role did with a step's time, in shares; [] if no step was watched."""
    panels = []
    for role in Role:
        series = [_share(str(state), f"c-{state}", steps, _share_of(role, state)) for state in ActorState]
        if all(y is None for s in series for y in s.ys):
            continue
        title = f"{role.capitalize()}s" if role is not Role.LEARNER else "Learner"
        panels.append(
            bar_panel(
                title, _ROLE_NOTES[role], series, y_format=percent, tick_format=whole_percent, y_high=1.0,
                width="third",
            )
        )  # fmt: skip
    return panels


def _share_of(role: Role, state: ActorState) -> Value:
    return lambda m: None if m.runtime is None else m.runtime.share(role, state)


_ROLE_NOTES = {
    Role.GENERATOR: "Share of the step: busy with a call, held back by staleness or a push, without work.",
    Role.TEACHER: "Likewise. A teacher that is always busy is what a run waits for: give it more actors.",
    Role.LEARNER: "It waits for a whole batch. Waiting is time that more generators or teachers would save.",
}

_STAGE_COLOURS = {
    Stage.ROLLOUT: "c-rollout",
    Stage.REFINE: "c-refined",
    Stage.SCORE: "c-score",
    Stage.LEARN: "c-learn",
    Stage.SYNC: "c-sync",
    "other": "c-other",
}
