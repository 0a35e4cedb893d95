"""Puts the page together: run folder in, `report.html` out."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trd_ray.metrics import StepMetrics
from trd_ray.report.charts import (
    Panel,
    accuracy_panel,
    flips_panel,
    learner_panels,
    length_panel,
    number,
    percent,
    rewrite_panels,
    role_panels,
    time_panels,
)
from trd_ray.report.data import RunData, load_run
from trd_ray.report.findings import findings, headlines
from trd_ray.report.viewer import MAX_CHARS, Card, Kind, sample_cards, spread
from trd_ray.run_folder import RunFolder

MAX_TABLE_ROWS = 200

_KEY_OPTIONS = {
    "student.model": "student",
    "teacher.model": "teacher",
    "data.task": "task",
    "data.train": "training data",
    "pipeline.prompts_per_step": "problems a step",
    "pipeline.rollouts_per_prompt": "rollouts a problem",
    "generator.sampling.temperature": "rollout temperature",
    "learner.optimizer.learning_rate": "learning rate",
    "run.seed": "seed",
}
"""Options in the header, by what they are called there."""


@dataclass(frozen=True, kw_only=True)
class _Filter:
    """One button above the trajectories."""

    kind: str
    count: int


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    May be called at any time of a run. `ConfigError` if the folder holds no run, `DataError` if a
    file of it cannot be read.
    """
    folder = RunFolder(run_dir)
    run = load_run(folder)
    cards = sample_cards(folder.trajectories, steps=run.trajectory_steps)
    page = _environment().get_template("report.html.j2").render(
        run=run,
        title=f"{run.name} - trd-ray report",
        style=Markup(_asset("style.css")),
        script=Markup(_asset("script.js")),
        key_options=_key_options(run.options),
        options=sorted(run.options.items()),
        headlines=headlines(run),
        findings=findings(run),
        panels=_panels(run),
        cards=cards,
        max_chars=MAX_CHARS,
        card_steps=sorted({card.row.learner_step for card in cards}),
        filters=_filters(cards),
        num_logged_steps=len(run.trajectory_steps),
        table=_table_rows(run.steps),
    )  # fmt: skip
    temporary = folder.report.with_name(folder.report.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, folder.report)
    return folder.report


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("trd_ray.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number}
    environment.tests["finite"] = math.isfinite
    return environment


def _asset(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def _key_options(options: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, options[key]) for key, name in _KEY_OPTIONS.items() if options.get(key)]


def _panels(run: RunData) -> list[Panel]:
    if not run.steps:
        return [accuracy_panel((), run.evals)] if run.evals else []
    flips = flips_panel(run.steps)
    return [
        accuracy_panel(run.steps, run.evals),
        *learner_panels(run.steps),
        *([flips] if flips else []),
        *time_panels(run.steps, wide=flips is None),  # so that no row of the page has a hole
        length_panel(run.steps),
        *role_panels(run.steps),
        *rewrite_panels(run.steps),
    ]


def _filters(cards: Sequence[Card]) -> list[_Filter]:
    counts = Counter(card.kind for card in cards)
    return [_Filter(kind=kind.value, count=counts[kind]) for kind in Kind if counts[kind]]


def _table_rows(steps: Sequence[StepMetrics]) -> list[StepMetrics]:
    return [steps[i] for i in spread(range(len(steps)), MAX_TABLE_ROWS)]
