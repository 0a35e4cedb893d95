"""The leaderboard on disk: Markdown for reading, CSV for programs, HTML with learning curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import trd_ray.report
from trd_ray.disk import write_whole
from trd_ray.report.svg import WIDE, Series, line_chart
from trd_ray.sweep import words
from trd_ray.sweep.leaderboard import Leaderboard, Row
from trd_ray.sweep.state import TrialStatus

_NUM_COLOURS = 10
_MOST_CURVES = 20
_COLUMNS = (
    "#",
    "variant",
    "mean",
    "95% interval",
    "n",
    "difference to the first",
    "trials",
    "time",
    "tokens",
)

_CSV = (
    "place",
    "variant",
    "metric",
    "n",
    "mean",
    "ci95_low",
    "ci95_high",
    "difference",
    "difference_ci95_low",
    "difference_ci95_high",
    "num_pairs",
    "distinguishable",
)


def write_leaderboard(board: Leaderboard, folder: Path) -> None:
    """Write `leaderboard.md`, `.csv` and `.html`, each atomically. Raises `DiskError`."""
    for suffix, text in (("md", markdown(board)), ("csv", csv_text(board)), ("html", html(board))):
        write_whole(folder / f"leaderboard.{suffix}", text)


def cells(board: Leaderboard) -> Iterator[tuple[str, ...]]:
    """One row a variant, under `columns`."""
    for place, row in enumerate(board.rows, start=1):
        yield (
            str(place), row.variant, words.mean(row), words.interval(row),
            f"{row.num_done} of {len(row.trials)}", words.difference(row, board),
            words.statuses(row.statuses), words.duration(row.spent_s), f"{row.num_tokens:,}",
        )  # fmt: skip


def columns(board: Leaderboard) -> tuple[str, ...]:
    """Names of the cells; the mean is called by its metric."""
    return tuple(board.label if name == "mean" else name for name in _COLUMNS)


def markdown(board: Leaderboard) -> str:
    """The table, each trial, and how to read them."""
    trials = [
        (line.record.name, line.record.status.value, words.trial_value(line),
         words.duration(line.record.spent_s), words.first_line(line.record.message))
        for line in board.lines
    ]  # fmt: skip
    return "\n".join(
        [
            f"# {board.name}", "", *_table(columns(board), list(cells(board))), "", words.READING, "",
            "## Trials", "", *_table(("trial", "status", board.label, "time", "message"), trials), "",
        ]
    )  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def csv_text(board: Leaderboard) -> str:
    """Plain numbers; an empty field where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        (*_CSV, *(f"num_{_column(s)}" for s in TrialStatus), "learner_step", "spent_s", "num_tokens")
    )
    for place, row in enumerate(board.rows, start=1):
        writer.writerow((place, row.variant, board.label, *_numbers(row)))
    return out.getvalue()


def _column(status: TrialStatus) -> str:
    return status.value.replace(" ", "_")


def _numbers(row: Row) -> Iterator[object]:
    paired = row.difference
    yield from (row.num_done, row.mean, *(row.interval or (None, None)))
    if paired is None:
        yield from (None, None, None, None, None)
    else:
        known = None if paired.interval is None else str(paired.is_distinguishable).lower()
        yield from (paired.mean, *(paired.interval or (None, None)), paired.num_pairs, known)
    yield from (row.statuses.get(status, 0) for status in TrialStatus)
    yield from (row.learner_step, round(row.spent_s, 1), row.num_tokens)


def html(board: Leaderboard) -> str:
    """One page that opens anywhere, without a server or a network."""
    environment = Environment(
        loader=PackageLoader("trd_ray.sweep", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    curves = [(place, row) for place, row in enumerate(board.rows) if row.curve][:_MOST_CURVES]
    return environment.get_template("leaderboard.html.j2").render(
        board=board,
        columns=columns(board),
        rows=list(zip(board.rows, cells(board), strict=True)),
        words=words,
        reading=words.READING,
        style=Markup(_report_asset("page.css")),
        script=Markup(_report_asset("page.js")),
        chart=_chart(board, curves) if curves else None,
        legend=[(_colour(place), row.variant) for place, row in curves],
        num_curves=len(curves),
        failed=TrialStatus.FAILED,
    )


def _report_asset(name: str) -> str:
    """Looks as a run's report does."""
    return (Path(trd_ray.report.__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _colour(place: int) -> str:
    return f"v{place % _NUM_COLOURS}"


def _chart(board: Leaderboard, curves: Sequence[tuple[int, Row]]) -> Markup:
    series = []
    for place, row in curves:
        for line in row.trials if len(row.trials) > 1 else ():
            series.append(_series(row.variant, place, line.result.curve, faint=True))
        series.append(_series(row.variant, place, row.curve, faint=False))
    return line_chart(
        series, label=f"{board.label} over learner steps", y_format=words.number, size=WIDE,
        y_range=(0.0, 1.0) if board.metric.name in ("avg_at_k", "pass_at_k") else None,
    )  # fmt: skip


def _series(name: str, place: int, curve: Sequence[tuple[int, float]], *, faint: bool) -> Series:
    return Series(
        name=name, css=_colour(place), xs=[float(step) for step, _ in curve], ys=[y for _, y in curve],
        faint=faint,
    )  # fmt: skip
