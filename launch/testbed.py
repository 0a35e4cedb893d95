"""`trd-ray testbed build|check`: make the testbed's models anew, and measure what they can do."""

from __future__ import annotations

from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from launch.consoles import console
from trd_ray.model_files import require_model
from trd_ray.testbed.build import BuildProgress
from trd_ray.testbed.build import build as build_models
from trd_ray.testbed.check import CheckReport, Rate, RewriteRates
from trd_ray.testbed.check import check as check_models
from trd_ray.testbed.paths import STUDENT, TEACHER, WEAK_STUDENT, models_path

# What the shipped models must be able to do; see docs/testbed.md.
_TEACHER_SOLVES = (0.97, 1.0)
_TEACHER_REWRITES = (0.95, 1.0)
_STUDENT_SOLVES = (0.35, 0.60)
_STUDENT_USES_REFERENCE = (0.95, 1.0)


def build(output: Path, *, seed: int) -> None:
    """Train the models from nothing into `output`, with a bar a stage."""
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.completed:>5.0f}/{task.total:.0f} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(progress: BuildProgress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.num_total, note="")
            note = "" if progress.loss is None else f"loss {progress.loss:.3f}"
            bars.update(tasks[progress.stage], completed=progress.num_done, note=note)

        build_models(output, seed=seed, report=show)
    show(f"models in {output}; measure them with: trd-ray testbed check {output}")


def check(models: Path | None) -> int:
    """Measure the models and print the figures. Returns 0 if all are as they must be, else 1."""
    folder = models_path() if models is None else models
    for name in (TEACHER, STUDENT, WEAK_STUDENT):
        require_model(folder / name)
    with console.status("measuring ...") as status:
        report = check_models(folder, report=lambda name: status.update(f"measuring: {name}"))
    table = Table(
        "figure", "measured", "95% interval", "of", "must be", title=Text(f"testbed models in {folder}")
    )
    passed = [_row(table, name, rate, wanted) for name, rate, wanted in _figures(report)]
    console.print(table)
    return 0 if all(passed) else 1


def _figures(report: CheckReport) -> list[tuple[str, Rate, tuple[float, float] | None]]:
    rows: list[tuple[str, Rate, tuple[float, float] | None]] = [
        ("teacher solves, greedy", report.teacher_greedy, _TEACHER_SOLVES),
        ("teacher solves, T=1", report.teacher_sampled, _TEACHER_SOLVES),
        ("student solves, greedy", report.student_greedy, None),
        ("student solves, T=1", report.student_sampled, _STUDENT_SOLVES),
        ("weak student solves, T=1", report.weak_student_sampled, None),
        ("student with reference, T=1", report.student_privileged, _STUDENT_USES_REFERENCE),
        ("student's wrong answers well formed", report.student_errors.well_formed, None),
    ]
    groups = (
        ("teacher rewrites", report.teacher_rewrites, _TEACHER_REWRITES),
        ("student with reference rewrites", report.student_privileged_rewrites, None),
    )
    for who, rewrites, wanted in groups:
        for rates in rewrites:
            rows += _rewrite_figures(who, rates, wanted)
    return rows


def _rewrite_figures(
    who: str, rates: RewriteRates, wanted: tuple[float, float] | None
) -> list[tuple[str, Rate, tuple[float, float] | None]]:
    return [
        (f"{who} {rates.source}: right", rates.rewritten_right, wanted),
        (f"{who} {rates.source}: correct steps kept", rates.prefix_kept, wanted),
    ]


def _row(table: Table, name: str, rate: Rate, wanted: tuple[float, float] | None) -> bool:
    passed = wanted is None or wanted[0] <= rate.value <= wanted[1]
    low, high = rate.ci95
    must = "" if wanted is None else f"{wanted[0]:.0%} to {wanted[1]:.0%}"
    table.add_row(
        name,
        f"{rate.value:.1%}",
        f"{low:.1%} to {high:.1%}",
        str(rate.num_total),
        must if passed else f"[red]{must}[/]",
    )
    return passed
