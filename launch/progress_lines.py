"""The words of the progress display: figures of the last step and of this moment, set into lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from trd_ray.activity import RoleActivity
from trd_ray.activity_records import ActorState
from trd_ray.metrics import StepMetrics
from trd_ray.roles import Role
from trd_ray.runtime_metrics import RuntimeMetrics

_GAP = "  "
_QUEUED = (Role.GENERATOR, Role.TEACHER)
_NARROWEST_BAR, _WIDEST_BAR = 8, 40


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the display says at one moment. Laid out when it is drawn, in the width that there is then."""

    done_steps: int
    num_steps: int
    stage: str
    eta: str
    """Empty before the first step."""
    groups: tuple[tuple[str, ...], ...]
    """Figures that belong together begin on a line of their own; none is ever cut in two lines."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield from self._head(console, options, width)
        for group in self.groups:
            for line in packed(group, width):
                yield Segment.line()
                # The last column stays free: some terminals go to the next line when it is written.
                yield from _cut(Text(line), width - 1, console, options)

    def _head(self, console: Console, options: ConsoleOptions, width: int) -> Iterator[Segment]:
        # An evaluation alone has no steps.
        steps = f"step {self.done_steps}/{self.num_steps}" if self.num_steps else ""
        eta = f"{_GAP}ETA {self.eta}" if self.eta else ""
        room = width - 1 - len(steps) - len(self.stage) - len(eta) - 2
        bar = min(room, _WIDEST_BAR)
        if bar < _NARROWEST_BAR or not steps:
            yield from _cut(
                Text(f"{steps} {self.stage}{eta}".strip(), style="bold"), width - 1, console, options
            )
            return
        yield from console.render(Text(f"{steps} ", style="bold", end=""), options)
        progress = ProgressBar(total=self.num_steps, completed=self.done_steps, width=bar)
        yield from console.render(progress, options)
        yield from console.render(Text(f" {self.stage}", style="cyan", end=""), options)
        yield from console.render(Text(eta, end=""), options)


def _cut(text: Text, width: int, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
    text.truncate(max(width, 1), overflow="ellipsis")
    text.end = ""
    yield from console.render(text, options.update(no_wrap=True))


def packed(figures: Sequence[str], width: int) -> list[str]:
    """As many figures on a line as there is room for; a longer one has a line of its own."""
    lines: list[str] = []
    for figure in figures:
        if lines and len(lines[-1]) + len(_GAP) + len(figure) < width:
            lines[-1] += _GAP + figure
        else:
            lines.append(figure)
    return lines


def learning_figures(m: StepMetrics) -> tuple[str, ...]:
    """What a step made of the student. `flips +5/-1`: 5 wrong rollouts were put right, 1 right one spoilt."""
    accuracy = m.trajectory_accuracy if m.rollout_accuracy is None else m.rollout_accuracy
    name = "trajectory acc" if m.rollout_accuracy is None else "rollout acc"
    figures = [] if accuracy is None else [f"{name} {accuracy:.3f}"]
    if m.refined_accuracy is not None:
        figures.append(f"refined acc {m.refined_accuracy:.3f}")
        figures.append(f"flips +{m.flips_wrong_to_right}/-{m.flips_right_to_wrong}")
    figures += [f"loss {m.loss:.4f}", f"{m.tokens_per_s:,.0f} tok/s", f"staleness {m.staleness_max}"]
    if m.num_rejected:
        figures.append(f"rejected {m.num_rejected}")
    return tuple(figures)


def runtime_figures(m: RuntimeMetrics) -> tuple[str, ...]:
    """Who was busy in the step, and how much waited on average."""
    shares = ((role, m.share(role, ActorState.BUSY)) for role in Role)
    queues = ((role, getattr(m, f"{role}_queue_mean")) for role in _QUEUED)
    figures = []
    if busy := " ".join(f"{role} {share:.0%}" for role, share in shares if share is not None):
        figures.append(f"busy: {busy}")
    if queued := " ".join(f"{role} {mean:.0f}" for role, mean in queues if mean is not None):
        figures.append(f"queue: {queued}")
    if m.buffer_depth_mean is not None:
        figures.append(f"buffer {m.buffer_depth_mean:.0f}")
    return tuple(figures)


def present_figures(m: RuntimeMetrics | None, activity: RoleActivity) -> tuple[str, ...]:
    """Who was busy in the last step, and how much waits now."""
    figures = [] if m is None else [f for f in runtime_figures(m) if f.startswith("busy")]
    queued = " ".join(f"{role} {activity.queue(role).value}" for role in _QUEUED)
    return (*figures, f"queue: {queued}", f"in flight {activity.in_flight.value}",
            f"buffer {activity.buffer.value}")  # fmt: skip
