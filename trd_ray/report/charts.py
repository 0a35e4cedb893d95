"""Which charts the report has, and what their curves are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from trd_ray.activity_records import ActorState
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.report.svg import NARROW, NORMAL, WIDE, Series, Whiskers, line_chart, stacked_bars
from trd_ray.roles import Role
from trd_ray.stage_clock import Stage

MAX_POINTS = 240
"""Points of a curve; more steps are averaged in groups."""
MAX_BARS = 80
_WINDOWS = 25
"""A smoothed curve is a moving mean over this fraction of the run."""

Value = Callable[[StepMetrics], float | None]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart with its title, legend and a sentence on how to read it."""

    title: str
    note: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    """(colour class, name)."""
    width: str = "half"
    """Of the page: `full`, `half` or `third`."""


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _whole_percent(value: float) -> str:
    return f"{100 * value:g}%"


def number(value: float) -> str:
    """Three significant digits, plain where that is short."""
    # From 999.5 on, three digits would be rounded up to 1e+03.
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def group(steps: Sequence[StepMetrics], value: Value, *, most: int) -> tuple[list[float], list[float | None]]:
    """Means of consecutive steps in at most `most` groups; None where no step has a finite value."""
    size = max(1, math.ceil(len(steps) / most))
    xs: list[float] = []
    ys: list[float | None] = []
    for start in range(0, len(steps), size):
        part = steps[start : start + size]
        finite = [y for step in part if (y := value(step)) is not None and math.isfinite(y)]
        xs.append(float(part[-1].learner_step))
        ys.append(math.fsum(finite) / len(finite) if finite else None)
    return xs, ys


def smooth(ys: Sequence[float | None]) -> list[float | None]:
    """Centred moving mean; gaps stay gaps."""
    half = len(ys) // _WINDOWS // 2
    smoothed: list[float | None] = []
    for i, y in enumerate(ys):
        near = [v for v in ys[max(0, i - half) : i + half + 1] if v is not None]
        smoothed.append(None if y is None else math.fsum(near) / len(near))
    return smoothed


def _smoothed(steps: Sequence[StepMetrics], name: str, css: str, value: Value) -> list[Series]:
    """The raw curve, pale, and the smoothed one above it; nothing if the value never exists."""
    xs, ys = group(steps, value, most=MAX_POINTS)
    if all(y is None for y in ys):
        return []
    return [
        Series(name=name, css=css, xs=xs, ys=ys, faint=True),
        Series(name=name, css=css, xs=xs, ys=smooth(ys)),
    ]


def _legend(series: Sequence[Series], whiskers: Sequence[Whiskers] = ()) -> tuple[tuple[str, str], ...]:
    curves = tuple((s.css, s.name) for s in series if not s.faint)
    return curves + tuple((w.css, w.name) for w in whiskers)


def accuracy_panel(steps: Sequence[StepMetrics], evals: Sequence[EvalReport]) -> Panel:
    series = _smoothed(steps, "rollouts (training problems)", "c-rollout", lambda m: m.rollout_accuracy)
    series += _smoothed(steps, "refinements", "c-refined", lambda m: m.refined_accuracy)
    whiskers = [
        _eval_whiskers([r for r in evals if r.dataset == dataset], css)
        for dataset, css in zip(dict.fromkeys(r.dataset for r in evals), _EVAL_COLOURS * 9, strict=False)
    ]
    return Panel(
        title="Accuracy",
        note="Points with bars are evaluations with their 95% interval over problems.",
        svg=line_chart(
            series, whiskers=whiskers, label="Accuracy over learner steps", y_format=percent,
            tick_format=_whole_percent, size=WIDE, y_range=(0.0, 1.0),
        ),
        legend=_legend(series, whiskers),
        width="full",
    )  # fmt: skip


_EVAL_COLOURS = ("c-eval", "c-grad", "c-learn", "c-sync")


def _eval_whiskers(reports: Sequence[EvalReport], css: str) -> Whiskers:
    return Whiskers(
        name=f"avg@{reports[0].num_samples} on {reports[0].dataset}",
        css=css,
        xs=[float(r.learner_step) for r in reports],
        ys=[r.avg_at_k for r in reports],
        lows=[r.avg_ci95[0] for r in reports],
        highs=[r.avg_ci95[1] for r in reports],
    )


def _line_panel(title: str, note: str, series: Sequence[Series], *, narrow: bool = False) -> Panel:
    return Panel(
        title=title,
        note=note,
        svg=line_chart(
            series, label=f"{title} over learner steps", y_format=number, size=NARROW if narrow else NORMAL
        ),
        legend=_legend(series) if len(_legend(series)) > 1 else (),
        width="third" if narrow else "half",
    )


def learner_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    loss = _smoothed(steps, "loss", "c-loss", lambda m: m.loss)
    grad = _smoothed(steps, "gradient norm", "c-grad", lambda m: m.grad_norm)
    xs, ys = group(steps, lambda m: m.learning_rate, most=MAX_POINTS)
    rate = [Series(name="learning rate", css="c-rate", xs=xs, ys=ys)]
    panels = []
    if loss:
        panels.append(
            _line_panel("Loss", "Divergence from the teacher, nats a response token.", loss, narrow=True)
        )
    if grad:
        panels.append(_line_panel("Gradient norm", "Global L2 norm before clipping.", grad, narrow=True))
    panels.append(_line_panel("Learning rate", "As the schedule set it.", rate, narrow=True))
    return panels


def flips_panel(steps: Sequence[StepMetrics]) -> Panel | None:
    """Share of trajectories whose correctness the teacher changed; None if nothing was refined."""
    if all(step.refined_accuracy is None for step in steps):
        return None
    fixed = _smoothed(
        steps, "wrong to right", "c-refined", lambda m: m.flips_wrong_to_right / m.num_trajectories
    )
    broken = _smoothed(
        steps, "right to wrong", "c-bad", lambda m: m.flips_right_to_wrong / m.num_trajectories
    )
    series = [*fixed, *broken]
    return Panel(
        title="What refining changes",
        note="Share of a step's trajectories that the teacher repairs, and that it breaks.",
        svg=line_chart(
            series, label="Share of flips over learner steps", y_format=percent, tick_format=_whole_percent
        ),
        legend=_legend(series),
    )


def rewrite_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    """How far refinements are from their rollouts, and how likely the student finds them; [] if nothing
    was refined."""
    edits = _smoothed(steps, "tokens changed", "c-refined", lambda m: m.edit_distance_mean)
    if not edits:
        return []
    edits += _smoothed(steps, "tokens kept", "c-rollout", lambda m: m.kept_share_mean)
    support = _smoothed(steps, "support", "c-eval", lambda m: m.support_mean)
    share = Panel(
        title="How much is rewritten",
        note="Token edits from rollout to refinement over the longer one's length"
        + ("; share of a spliced answer that is the rollout's." if len(edits) > 2 else "."),
        svg=line_chart(
            edits, label="Share of tokens over learner steps", y_format=percent, tick_format=_whole_percent,
            size=NORMAL if support else WIDE,
        ),
        legend=_legend(edits) if len(edits) > 2 else (),
        width="half" if support else "full",
    )  # fmt: skip
    if not support:
        return [share]
    note = "Mean student logprob of what is trained on less that of its rollouts, nats a token."
    return [share, _line_panel("Support", note, support)]


def length_panel(steps: Sequence[StepMetrics]) -> Panel:
    series = _smoothed(steps, "rollouts", "c-rollout", lambda m: m.rollout_length_mean)
    series += _smoothed(steps, "refinements", "c-refined", lambda m: m.refined_length_mean)
    return _line_panel("Length", "Mean tokens of an answer.", series)


def time_panels(steps: Sequence[StepMetrics], *, wide: bool) -> list[Panel]:
    stages = (*(str(stage) for stage in Stage), "other")
    series = []
    for stage in stages:
        xs, ys = group(steps, lambda m, key=f"{stage}_s": getattr(m, key), most=MAX_BARS)  # type: ignore[misc]
        series.append(Series(name=stage, css=f"c-{_STAGE_COLOURS[stage]}", xs=xs, ys=ys))
    used = [s for s in series if any(y for y in s.ys)] or series
    times = Panel(
        title="Time of a step",
        note="Seconds by stage. Where stages overlap, each instant is shared among them by samples.",
        svg=stacked_bars(
            used,
            label="Seconds by stage over learner steps",
            y_format=lambda v: f"{number(v)} s",
            size=WIDE if wide else NORMAL,
        ),
        width="full" if wide else "half",
        legend=_legend(used),
    )
    speed = _smoothed(steps, "tokens per second", "c-eval", lambda m: m.tokens_per_s)
    return [times, _line_panel("Throughput", "Generated tokens per second of the whole step.", speed)]


def role_panels(steps: Sequence[StepMetrics]) -> list[Panel]:
    """What each role did with a step's time, in shares; [] if no step was watched."""
    watched: list[tuple[Role, list[Series]]] = []
    for role in Role:
        series = []
        for state in ActorState:
            xs, ys = group(steps, _share_of(role, state), most=MAX_BARS)
            series.append(Series(name=state, css=f"c-{state}", xs=xs, ys=ys))
        if all(y is None for s in series for y in s.ys):
            continue
        used = [s for s in series if any(s.ys)] or series
        watched.append((role, used))
    width, size = {1: ("full", WIDE), 2: ("half", NORMAL)}.get(len(watched), ("third", NARROW))
    return [
        Panel(
            title=f"{role.capitalize()}s" if role is not Role.LEARNER else "Learner",
            note=_ROLE_NOTES[role],
            svg=stacked_bars(
                used, label=f"Share of a step by state of the {role} over learner steps", y_format=percent,
                tick_format=_whole_percent, size=size, y_high=1.0,
            ),
            width=width,
            legend=_legend(used),
        )
        for role, used in watched
    ]  # fmt: skip


def _share_of(role: Role, state: ActorState) -> Value:
    return lambda m: None if m.runtime is None else m.runtime.share(role, state)


_ROLE_NOTES = {
    Role.GENERATOR: "Share of the step: busy with a call, held back by staleness or a push, without work.",
    Role.TEACHER: "Likewise. A teacher that is always busy is what a run waits for: give it more actors.",
    Role.LEARNER: "It waits for a whole batch. Waiting is time that more generators or teachers would save.",
}

_STAGE_COLOURS = {
    "rollout": "rollout",
    "refine": "refined",
    "score": "score",
    "learn": "learn",
    "sync": "sync",
    "other": "other",
}
