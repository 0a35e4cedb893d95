"""What a person sees of a run: a live display in a terminal, one line a step elsewhere, and a table at
the end."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch.live_lines import REFRESH_HZ, LiveLines
from launch.progress_lines import Shown, learning_figures, present_figures, runtime_figures
from trd_ray.activity import RoleActivity
from trd_ray.evaluation import EvalReport
from trd_ray.metrics import StepMetrics
from trd_ray.stage_clock import Stage

MAX_TABLE_ROWS = 20
_ETA_STEPS = 20
"""The time left is judged by so many latest steps: early ones warm caches up and are slower."""
_OF_SAMPLES = (Stage.ROLLOUT, Stage.REFINE, Stage.SCORE)


class Progress:
    """An `Observer` that shows a run on a console. Use it as a context manager.

    In a terminal it redraws a few lines in place, laid out for the width that the terminal has at that
    moment; elsewhere (a log file, `ray job logs`, a terminal that cannot move its cursor) it prints one
    plain line a step, complete in itself.

    Where stages overlap, how many of a step have ended one says little. So it then shows the calls that
    are in each stage now: `rollout 48 refine 12 learn`.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        console: Console | None = None,
        done_steps: int = 0,
        activity: RoleActivity | None = None,
        overlaps: bool = False,
        plain: bool = False,
    ) -> None:
        """
        Args:
            plain: one line a step in a terminal too: a redrawn one takes the output of a debugger and of
                actors, and what is typed at a prompt.
            done_steps: those that a resumed run has already behind it.
            activity: what the actors are doing: queues and buffer are shown as they are now.
            overlaps: stages overlap (there is no stage barrier); needs `activity`.
        """
        self._console = console if console is not None else Console()
        self._num_steps = num_steps
        self._done_steps = done_steps
        self._activity = activity
        self._overlaps = overlaps and activity is not None
        self._drawn_at = -math.inf
        self._stage = ""
        self._stage_done = 0
        self._stage_total = 0
        self._last: StepMetrics | None = None
        self._seconds: deque[float] = deque(maxlen=_ETA_STEPS)
        self._live = (
            LiveLines(self._console, self.render)
            if self._console.is_terminal and not plain and not self._console.is_dumb_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def on_stage(self, stage: str, done: int, total: int) -> None:
        is_new = str(stage) != self._stage
        self._stage, self._stage_done, self._stage_total = str(stage), done, total
        # Told of every sample, a thousand times a second perhaps; nobody reads so fast. A new stage is shown
        # at once: it may be long until the next word of it.
        if is_new or time.monotonic() - self._drawn_at >= 1 / REFRESH_HZ:
            self._refresh()

    def on_step(self, metrics: StepMetrics) -> None:
        self._last = metrics
        self._done_steps = metrics.learner_step
        self._seconds.append(metrics.step_s)
        self._stage = ""
        if self._live is None:
            figures = [
                *learning_figures(metrics),
                *(runtime_figures(metrics.runtime) if metrics.runtime else ()),
            ]
            if eta := self._eta_text():
                figures.append(f"ETA {eta}")
            self._print(f"step {self._done_steps}/{self._num_steps}  {'  '.join(figures)}")
        self._refresh()

    def on_eval(self, report: EvalReport) -> None:
        low, high = report.avg_ci95
        self._print(
            f"eval at step {report.learner_step} on {report.dataset}: avg@{report.num_samples} "
            f"{report.avg_at_k:.3f} ({low:.3f} to {high:.3f})  pass@{report.k} {report.pass_at_k:.3f}"
        )

    def eta_s(self) -> float | None:
        """Seconds of steps that are left, evaluations not counted; None before the first step."""
        if not self._seconds:
            return None
        return (self._num_steps - self._done_steps) * math.fsum(self._seconds) / len(self._seconds)

    def render(self) -> RenderableType:
        """The display."""
        groups = []
        if self._last is not None:
            groups.append(learning_figures(self._last))
            if self._activity is not None:
                groups.append(present_figures(self._last.runtime, self._activity))
        return Shown(
            done_steps=self._done_steps,
            num_steps=self._num_steps,
            stage=self._stage_text(),
            eta=self._eta_text(),
            groups=tuple(groups),
        )

    def _eta_text(self) -> str:
        eta = self.eta_s()
        return "" if eta is None or self._done_steps >= self._num_steps else clock_text(eta)

    def _stage_text(self) -> str:
        if self._overlaps and self._activity is not None:
            return self._overlap_text(self._activity)
        if not self._stage:
            return "starting" if self._last is None else ""
        return f"{self._stage} {self._stage_done}/{self._stage_total}"

    def _overlap_text(self, activity: RoleActivity) -> str:
        calls = activity.outstanding()
        parts = [f"{stage} {calls[stage]}" for stage in _OF_SAMPLES if calls.get(stage)]
        parts += [stage for stage in (Stage.LEARN, Stage.SYNC) if calls.get(stage)]
        # Only stages of a step overlap; whatever else is told of is the one thing that goes on beside them.
        if self._stage and self._stage not in tuple(Stage) and self._stage_done < self._stage_total:
            parts.insert(0, f"{self._stage} {self._stage_done}/{self._stage_total}")
        elif not parts and self._last is not None:
            return "waiting"
        return " ".join(parts) or "starting"

    def _print(self, line: str) -> None:
        # Plain: no markup in names of data sets, no wrapping that would break a line of a log in two.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        self._drawn_at = time.monotonic()
        if self._live is not None:
            self._live.update(self.render())


def clock_text(seconds: float) -> str:
    """`0:42`, `12:05`, `3:20:00`."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def closing_table(steps: Sequence[StepMetrics], evals: Sequence[EvalReport]) -> RenderableType:
    """What to print at the end: the steps, thinned to about 20 rows, and start against end of each
    evaluation. Parts without content are left out."""
    parts: list[RenderableType] = []
    if steps:
        parts.append(_step_table(steps))
    if evals:
        parts.append(_eval_table(evals))
    return Group(*parts)


def _step_table(steps: Sequence[StepMetrics]) -> Table:
    refines = any(step.refined_accuracy is not None for step in steps)
    table = Table(title="Steps")
    for name in ("step", "rollout accuracy", *(["refined accuracy"] if refines else []), "loss"):
        table.add_column(name, justify="right")
    for m in thin(steps):
        refined = "-" if m.refined_accuracy is None else f"{m.refined_accuracy:.3f}"
        rollout = "-" if m.rollout_accuracy is None else f"{m.rollout_accuracy:.3f}"
        cells = [str(m.learner_step), rollout, *([refined] if refines else [])]
        table.add_row(*cells, f"{m.loss:.4f}")
    return table


def thin(steps: Sequence[StepMetrics]) -> list[StepMetrics]:
    """At most `MAX_TABLE_ROWS` of the steps, evenly spaced, the first and the last among them."""
    if len(steps) <= MAX_TABLE_ROWS:
        return list(steps)
    last = len(steps) - 1
    return [steps[round(i * last / (MAX_TABLE_ROWS - 1))] for i in range(MAX_TABLE_ROWS)]


def _eval_table(evals: Sequence[EvalReport]) -> Table:
    datasets = list(dict.fromkeys(report.dataset for report in evals))
    only = f" on {datasets[0]}" if len(datasets) == 1 else ""
    table = Table(title=Text(f"Evaluation{only} (95% intervals over problems)"))
    table.add_column("", no_wrap=True)
    for name in ("start", "end", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for dataset in datasets:
        reports = [report for report in evals if report.dataset == dataset]
        first, last = reports[0], reports[-1]
        prefix = "" if only else f"{dataset}: "
        table.add_row(
            Text(f"{prefix}avg@{last.num_samples}"),
            _with_interval(first.avg_at_k, first.avg_ci95),
            _with_interval(last.avg_at_k, last.avg_ci95),
            f"{last.avg_at_k - first.avg_at_k:+.3f}",
        )
        table.add_row(
            Text(f"{prefix}pass@{last.k}"),
            _with_interval(first.pass_at_k, first.pass_ci95),
            _with_interval(last.pass_at_k, last.pass_ci95),
            f"{last.pass_at_k - first.pass_at_k:+.3f}",
        )
    return table


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
