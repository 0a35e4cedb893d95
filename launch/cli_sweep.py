"""The commands `trd-ray sweep` and `trd-ray leaderboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SweepArgument = Annotated[Path, typer.Argument(help="A sweep file, for example configs/sweep/methods.yaml")]


def sweep(
    sweep_file: SweepArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="key.path=value for every trial; sweep.key=value for the sweep itself", show_default=False
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Run the failed, stopped-by-signal and pending trials of the sweep."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and what they cost, start nothing.")
    ] = False,
) -> None:
    """Run an experiment many times with other options or seeds; compare the results in a leaderboard."""
    from trd_ray.sweep.spec import load_sweep

    loaded = load_sweep(sweep_file, overrides or [])
    from launch.sweep import run_sweep

    raise typer.Exit(run_sweep(loaded, resume=resume))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(sweep)
