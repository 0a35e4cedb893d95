"""Puts the page together: run folders in, one HTML file out."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from trd_ray.disk import write_whole
from trd_ray.errors import ConfigError, describe
from trd_ray.metrics import StepMetrics
from trd_ray.report.charts import number, percent
from trd_ray.report.compare import comparison_panels, final_values, option_differences, run_css
from trd_ray.report.data import RunData, load_run
from trd_ray.report.findings import findings, headlines
from trd_ray.report.rows import read_rows
from trd_ray.report.run_panels import run_panels
from trd_ray.report.selection import MAX_TEXT_BYTES, MAX_TRAJECTORIES, spread
from trd_ray.report.viewer import RunTrajectories
from trd_ray.report.vocabulary import find_tokenizer
from trd_ray.run_folder import RunFolder

MAX_TABLE_ROWS = 200
MAX_RUNS = 8

_SCRIPTS = (
    "page.js",
    "unpack.js",
    "tokens.js",
    "diff.js",
    "store.js",
    "list.js",
    "sides.js",
    "detail.js",
    "viewer.js",
)
_STYLES = ("page.css", "viewer.css")

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
class _RunPart:
    """One run on the page."""

    data: RunData
    css: str
    trajectories: RunTrajectories
    trace: str | None
    """Where trace.json is, as seen from the page; None if there is none."""

    @property
    def summary(self) -> Mapping[str, object]:
        """What the page's script knows of the run before it unpacks anything."""
        rows = self.trajectories.rows
        return {
            "name": self.data.name,
            "css": self.css,
            "num": len(rows.rows),
            "numByKind": {kind.value: n for kind, n in sorted(self.trajectories.num_by_kind.items())},
        }


def write_report(run_dirs: Path | Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run, or of several beside each other, and return its path.

    May be called at any time of a run.

    Args:
        out: the file; None is `report.html` in the run folder. Must be given for several runs.

    Raises:
        ConfigError: a folder holds no run; no file or too many runs are named.
        DataError: a file of a run cannot be read.
        DiskError: the page cannot be written.
    """
    dirs = [run_dirs] if isinstance(run_dirs, Path) else list(run_dirs)
    _require_sensible(dirs, out)
    folders = [RunFolder.open(path) for path in dirs]
    path = folders[0].report if out is None else out.expanduser()
    runs = _named_apart([load_run(folder) for folder in folders], folders)
    parts = [
        _part(folder, run, index=index, share=len(folders), page=path)
        for index, (folder, run) in enumerate(zip(folders, runs, strict=True))
    ]
    page = _render(parts)
    write_whole(path, page)
    return path


def _require_sensible(dirs: Sequence[Path], out: Path | None) -> None:
    if len(dirs) > 1 and out is None:
        raise ConfigError(
            describe(
                "several runs are compared in a file of their own", where="--out", got="nothing",
                expected="a file name", remedy="add --out comparison.html",
            )
        )  # fmt: skip
    if not 1 <= len(dirs) <= MAX_RUNS:
        raise ConfigError(
            describe(
                "this many runs cannot be told apart on one page", where="RUN...", got=len(dirs),
                expected=f"1 to {MAX_RUNS} run folders", remedy="name fewer",
            )
        )  # fmt: skip
    if out is not None and out.expanduser().is_dir():
        raise ConfigError(
            describe(
                "the page would replace a folder", where="--out", got=out, expected="a file name",
                remedy=f"write {out / 'report.html'}",
            )
        )  # fmt: skip


def _named_apart(runs: Sequence[RunData], folders: Sequence[RunFolder]) -> list[RunData]:
    """The runs with names that tell them apart: as much of their paths as is needed."""
    paths = [folder.path.resolve() for folder in folders]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]
    raise ConfigError(
        describe(
            "a run is named twice", where="RUN...", got=", ".join(str(path) for path in paths),
            expected="different run folders", remedy="name each once",
        )
    )  # fmt: skip


def _part(folder: RunFolder, run: RunData, *, index: int, share: int, page: Path) -> _RunPart:
    rows = read_rows(
        folder.trajectories,
        run.trajectory_steps,
        most=MAX_TRAJECTORIES // share,
        most_bytes=MAX_TEXT_BYTES / share,
    )
    tokenizer = find_tokenizer(folder, run.options)
    trace = os.path.relpath(folder.trace.resolve(), page.resolve().parent) if run.has_trace else None
    return _RunPart(
        data=run,
        css=run_css(index),
        trajectories=RunTrajectories(rows=rows, tokenizer=tokenizer),
        trace=None if trace is None else Path(trace).as_posix(),
    )


def _render(parts: Sequence[_RunPart]) -> str:
    runs = [part.data for part in parts]
    style, script = _assets(_STYLES), f'(() => {{\n"use strict";\n{_assets(_SCRIPTS)}}})();\n'
    shared = {
        "parts": parts,
        "style": Markup(style),
        "script": Markup(script),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "has_trajectories": any(part.trajectories.rows.rows for part in parts),
        "summaries": Markup(_json([part.summary for part in parts])),
    }
    if len(parts) > 1:
        return _environment().get_template("compare.html.j2").render(
            title=f"{' | '.join(run.name for run in runs)} - trd-ray comparison",
            table=final_values(runs),
            differences=option_differences(runs),
            panels=comparison_panels(runs),
            all_headlines=[(part, findings(part.data)) for part in parts],
            **shared,
        )  # fmt: skip
    (run,) = runs
    return _environment().get_template("report.html.j2").render(
        run=run,
        title=f"{run.name} - trd-ray report",
        key_options=_key_options(run.options),
        options=sorted(run.options.items()),
        headlines=headlines(run),
        findings=findings(run),
        panels=run_panels(run),
        table=_table_rows(run.steps),
        **shared,
    )  # fmt: skip


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


def _assets(names: Sequence[str]) -> str:
    folder = Path(__file__).parent / "templates"
    return "".join((folder / name).read_text(encoding="utf-8") for name in names)


def _hash(text: str) -> str:
    """As a content security policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(value: object) -> str:
    """JSON that may stand in a script element: no character of it can end the element."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _key_options(options: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, options[key]) for key, name in _KEY_OPTIONS.items() if options.get(key)]


def _table_rows(steps: Sequence[StepMetrics]) -> list[StepMetrics]:
    return [steps[i] for i in spread(range(len(steps)), MAX_TABLE_ROWS)]
