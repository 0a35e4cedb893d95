"""`trd-ray report`: one HTML file of one run, or of several beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The file to write; report.html in the run folder if one run is given.",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Write one HTML file of a run, also while it goes on, or of several beside each other."""
    from trd_ray.report import write_report

    print(write_report(run_dirs, out))
